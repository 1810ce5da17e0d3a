/** From a photograph to a classifier's input: the arithmetic of `export/src/preprocess.rs`. */
import type { Preprocessing } from './meta.ts';
import { type Rgb, resize } from './resize.ts';

/** Of pictures that are longer than this times their short side, the middle is used. */
const LONGEST = 4;

const middle = (width: number, height: number): [number, number] => {
  const most = LONGEST * Math.min(width, height);
  return [Math.min(width, most), Math.min(height, most)];
};

/** `picture` with a short side of `short` pixels; of one that is longer than four times its short side, the middle. */
export function resizeShortSide(picture: Rgb, short: number): Rgb {
  const [w, h] = middle(picture.width, picture.height);
  const side = Math.min(picture.width, picture.height);
  const scaled = (n: number) => Math.floor((n * short + Math.floor(side / 2)) / side);
  const left = Math.floor((picture.width - w) / 2);
  const top = Math.floor((picture.height - h) / 2);
  return resize(picture, [left, top, w, h], scaled(w), scaled(h));
}

/** `picture` as the network expects it, `[3, size, size]`: resized, the middle cut out, normalised channel by channel. */
export function preprocess(picture: Rgb, how: Preprocessing, size: number): Float32Array {
  const small = resizeShortSide(picture, how.resize);
  const left = Math.floor((small.width - size) / 2);
  const top = Math.floor((small.height - size) / 2);
  const out = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    const std = Math.fround(how.std[channel]!);
    const scale = Math.fround(0.5 / std);
    const offset = Math.fround(Math.fround(0.5 - Math.fround(how.mean[channel]!)) / std);
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

/** Red, green and blue of canvas pixels. What is transparent must have been laid on white already. */
export function rgbOf(pixels: Uint8ClampedArray, width: number, height: number): Rgb {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0, at = 0; at < data.length; i += 4) {
    data[at++] = pixels[i]!;
    data[at++] = pixels[i + 1]!;
    data[at++] = pixels[i + 2]!;
  }
  return { width, height, data };
}
