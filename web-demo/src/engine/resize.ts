/**
 * Antialiased bilinear resizing, as in PyTorch: a triangle filter that is wider when it shrinks an image. It computes the sums of
 * `export/src/resize.rs` in single precision and in the same order, so that the pixels are identical.
 */

/** An 8-bit RGB image in row order. */
export interface Rgb {
  width: number;
  height: number;
  data: Uint8Array;
}

const f = Math.fround;

/** For each output pixel along an axis, the first input pixel of its sum and the weights. */
interface Axis {
  first: Int32Array;
  weights: Float32Array[];
}

function axis(inputSize: number, size: number): Axis {
  const ratio = f(inputSize / size);
  const scale = Math.max(ratio, 1);
  const first = new Int32Array(size);
  const weights: Float32Array[] = [];
  for (let i = 0; i < size; i++) {
    const center = f(f(i + 0.5) * ratio);
    const left = clamp(Math.floor(f(center - scale)), 0, inputSize - 1);
    const right = clamp(Math.ceil(f(center + scale)), left + 1, inputSize);
    first[i] = left;
    const pixelWeights = new Float32Array(right - left);
    let sum = 0;
    for (let k = 0; k < pixelWeights.length; k++) {
      // The center of pixel k is at k + 0.5.
      const x = Math.abs(f(f(left + k - f(center - 0.5)) / scale));
      pixelWeights[k] = x >= 1 ? 0 : 1 - x;
      sum = f(sum + pixelWeights[k]!);
    }
    for (let k = 0; k < pixelWeights.length; k++) pixelWeights[k] = pixelWeights[k]! / sum;
    weights.push(pixelWeights);
  }
  return { first, weights };
}

const clamp = (value: number, min: number, max: number) => Math.min(Math.max(value, min), max);

/** A region inside an image: x, y, width and height. */
export type Region = readonly [number, number, number, number];

/** Resizes a region of an image to `width` × `height`; no side may be 0. */
export function resize(image: Rgb, [x, y, regionWidth, regionHeight]: Region, width: number, height: number): Rgb {
  const out = new Uint8Array(width * height * 3);
  const stride = image.width * 3;
  const start = y * stride + x * 3;
  if (regionWidth === width && regionHeight === height) {
    for (let row = 0; row < height; row++) {
      const from = start + row * stride;
      out.set(image.data.subarray(from, from + width * 3), row * width * 3);
    }
    return { width, height, data: out };
  }
  const horizontal = axis(regionWidth, width);
  const vertical = axis(regionHeight, height);
  const columns = new Float32Array(regionWidth * 3);
  for (let row = 0; row < height; row++) {
    sumRows(image.data, start + vertical.first[row]! * stride, stride, vertical.weights[row]!, columns);
    for (let column = 0; column < width; column++) {
      const weights = horizontal.weights[column]!;
      const left = horizontal.first[column]! * 3;
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum = f(sum + f(columns[left + 3 * k + channel]! * weights[k]!));
        out[(row * width + column) * 3 + channel] = round(sum);
      }
    }
  }
  return { width, height, data: out };
}

/** Stores the weighted sum of rows in `sums`. */
function sumRows(data: Uint8Array, start: number, stride: number, weights: Float32Array, sums: Float32Array): void {
  sums.fill(0);
  for (let k = 0; k < weights.length; k++) {
    const weight = weights[k]!;
    const from = start + k * stride;
    for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + f(data[from + i]! * weight);
  }
}

/** Rounds to the nearest byte; ties round up. */
function round(value: number): number {
  const clamped = clamp(value, 0, 255);
  const integer = Math.trunc(clamped);
  return integer + (clamped - integer >= 0.5 ? 1 : 0);
}
