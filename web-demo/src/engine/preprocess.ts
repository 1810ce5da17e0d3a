/** Converts a photograph to a classifier's input with the arithmetic of `export/src/preprocess.rs`. */
import type { Preprocessing } from './meta.ts';
import { type Rgb, resize } from './resize.ts';

/** The maximum aspect ratio; longer images are cropped to their center. */
const MAX_ASPECT = 4;

const croppedSize = (width: number, height: number): [number, number] => {
  const max = MAX_ASPECT * Math.min(width, height);
  return [Math.min(width, max), Math.min(height, max)];
};

/** Resizes the short side to `short` pixels; an image longer than four times its short side is cropped to its center. */
export function resizeShortSide(image: Rgb, short: number): Rgb {
  const [w, h] = croppedSize(image.width, image.height);
  const side = Math.min(image.width, image.height);
  const scaled = (n: number) => Math.floor((n * short + Math.floor(side / 2)) / side);
  const left = Math.floor((image.width - w) / 2);
  const top = Math.floor((image.height - h) / 2);
  return resize(image, [left, top, w, h], scaled(w), scaled(h));
}

/** Resizes the image, crops its center and normalizes its channels; returns `[3, size, size]`. */
export function preprocess(image: Rgb, settings: Preprocessing, size: number): Float32Array {
  const small = resizeShortSide(image, settings.resize);
  const left = Math.floor((small.width - size) / 2);
  const top = Math.floor((small.height - size) / 2);
  const out = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    const std = Math.fround(settings.std[channel]!);
    const scale = Math.fround(0.5 / std);
    const offset = Math.fround(Math.fround(0.5 - Math.fround(settings.mean[channel]!)) / std);
    let at = channel * size * size;
    for (let y = 0; y < size; y++) {
      let from = ((top + y) * small.width + left) * 3 + channel;
      for (let x = 0; x < size; x++, from += 3) {
        const value = Math.fround(Math.fround(small.data[from]! / 127.5) - 1);
        out[at++] = Math.fround(value * scale) + offset;
      }
    }
  }
  return out;
}

/** Removes the alpha channel of canvas pixels, which must be opaque. */
export function toRgb(pixels: Uint8ClampedArray, width: number, height: number): Rgb {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0, at = 0; at < data.length; i += 4) {
    data[at++] = pixels[i]!;
    data[at++] = pixels[i + 1]!;
    data[at++] = pixels[i + 2]!;
  }
  return { width, height, data };
}
