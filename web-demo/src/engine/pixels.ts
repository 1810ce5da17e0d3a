/** Converts a network's output to pixels, as `generator.rs` (`to_unit`) and `grid.rs` (`to_rgb`) of the exporter do. */

/** Converts `3 · size²` values in channel, row, column order to RGBA pixels; the range gives the values of black and white. */
export function toPixels(values: Float32Array, size: number, [black, white]: readonly [number, number]): Uint8ClampedArray<ArrayBuffer> {
  const plane = size * size;
  const out = new Uint8ClampedArray(4 * plane);
  const span = Math.fround(white - black);
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const unit = Math.fround((2 * (values[channel * plane + i]! - black)) / span - 1);
      out[4 * i + channel] = toByte(unit);
    }
    out[4 * i + 3] = 255;
  }
  return out;
}

/** Rounds ties up; NaN becomes 0. A clamped array would round ties to even. */
function toByte(unit: number): number {
  const value = Math.floor(Math.fround((unit + 1) * 127.5) + 0.5);
  return value > 0 ? Math.min(value, 255) : 0;
}
