/**
 * Resizing by the triangle filter that widens as it shrinks (what PyTorch calls antialiased bilinear). The sums are those of
 * `export/src/resize.rs`, in single precision and in the same order, so that pixels are the same to the last bit.
 */

/** Pixels of 8 bits, red, green, blue, in rows. */
export interface Rgb {
  width: number;
  height: number;
  data: Uint8Array;
}

const f = Math.fround;

/** For each new pixel along an axis, the first old pixel that it sums, and the weights from there on. */
interface Axis {
  first: Int32Array;
  weights: Float32Array[];
}

function axis(old: number, size: number): Axis {
  const ratio = f(old / size);
  const scale = Math.max(ratio, 1);
  const first = new Int32Array(size);
  const weights: Float32Array[] = [];
  for (let i = 0; i < size; i++) {
    const middle = f(f(i + 0.5) * ratio);
    const left = clamp(Math.floor(f(middle - scale)), 0, old - 1);
    const right = clamp(Math.ceil(f(middle + scale)), left + 1, old);
    first[i] = left;
    const own = new Float32Array(right - left);
    let sum = 0;
    for (let k = 0; k < own.length; k++) {
      // Pixel k has its middle at k + 0.5.
      const x = Math.abs(f(f(left + k - f(middle - 0.5)) / scale));
      own[k] = x >= 1 ? 0 : 1 - x;
      sum = f(sum + own[k]!);
    }
    for (let k = 0; k < own.length; k++) own[k] = own[k]! / sum;
    weights.push(own);
  }
  return { first, weights };
}

const clamp = (value: number, least: number, most: number) => Math.min(Math.max(value, least), most);

/** A part of a picture: x, y, width and height, all inside it. */
export type Part = readonly [number, number, number, number];

/** The `part` of `picture`, resized to `width` × `height`; no side may be 0. */
export function resize(picture: Rgb, [x, y, partWidth, partHeight]: Part, width: number, height: number): Rgb {
  const out = new Uint8Array(width * height * 3);
  const stride = picture.width * 3;
  const start = y * stride + x * 3;
  if (partWidth === width && partHeight === height) {
    for (let row = 0; row < height; row++) {
      const from = start + row * stride;
      out.set(picture.data.subarray(from, from + width * 3), row * width * 3);
    }
    return { width, height, data: out };
  }
  const across = axis(partWidth, width);
  const down = axis(partHeight, height);
  const columns = new Float32Array(partWidth * 3);
  for (let row = 0; row < height; row++) {
    sumRows(picture.data, start + down.first[row]! * stride, stride, down.weights[row]!, columns);
    for (let column = 0; column < width; column++) {
      const weights = across.weights[column]!;
      const left = across.first[column]! * 3;
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum = f(sum + f(columns[left + 3 * k + channel]! * weights[k]!));
        out[(row * width + column) * 3 + channel] = round(sum);
      }
    }
  }
  return { width, height, data: out };
}

/** Sums rows, each by its weight, into `sums`. */
function sumRows(data: Uint8Array, start: number, stride: number, weights: Float32Array, sums: Float32Array): void {
  sums.fill(0);
  for (let k = 0; k < weights.length; k++) {
    const weight = weights[k]!;
    const from = start + k * stride;
    for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + f(data[from + i]! * weight);
  }
}

/** The nearest byte, of a half the upper one. */
function round(value: number): number {
  const inside = clamp(value, 0, 255);
  const whole = Math.trunc(inside);
  return whole + (inside - whole >= 0.5 ? 1 : 0);
}
