import { expect, test } from 'vitest';
import { softmax } from '../src/engine/classifier.ts';
import { readImageHeader } from '../src/engine/image-header.ts';
import { toPixels } from '../src/engine/pixels.ts';
import { preprocess, resizeShortSide, toRgb } from '../src/engine/preprocess.ts';
import { type Rgb, resize } from '../src/engine/resize.ts';

function createImage(width: number, height: number, pixel: (x: number, y: number) => [number, number, number]): Rgb {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) data.set(pixel(x, y), (y * width + x) * 3);
  return { width, height, data };
}

/** Resizes in double precision: each output pixel is a weighted mean of all input pixels, with products of two triangles as weights. */
function resizeExactly(from: Rgb, width: number, height: number): number[] {
  const weights = (inputSize: number, size: number, i: number) => {
    const scale = Math.max(inputSize / size, 1);
    const center = (i + 0.5) * (inputSize / size);
    const unscaled = Array.from({ length: inputSize }, (_, k) => Math.max(0, 1 - Math.abs(k + 0.5 - center) / scale));
    const sum = unscaled.reduce((a, b) => a + b, 0);
    return unscaled.map((weight) => weight / sum);
  };
  const out: number[] = [];
  for (let y = 0; y < height; y++) {
    const down = weights(from.height, height, y);
    for (let x = 0; x < width; x++) {
      const across = weights(from.width, width, x);
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        down.forEach((wy, j) => across.forEach((wx, i) => (sum += wy * wx * from.data[(j * from.width + i) * 3 + channel]!)));
        out.push(sum);
      }
    }
  }
  return out;
}

test('resizing matches the exact triangle filter to the nearest byte', () => {
  let state = 7;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24;
  for (const [width, height, newWidth, newHeight] of [[31, 17, 9, 40], [8, 8, 5, 3], [5, 40, 20, 20], [1, 1, 4, 4], [64, 3, 7, 3]] as const) {
    const from = createImage(width, height, () => [next(), next(), next()]);
    const found = resize(from, [0, 0, width, height], newWidth, newHeight);
    resizeExactly(from, newWidth, newHeight).forEach((exact, i) => expect(Math.abs(found.data[i]! - exact)).toBeLessThan(0.5005));
  }
});

test('halving a row matches a calculation by hand', () => {
  // Triangles of half-width 2 around 1 and 3: pixel centers 0.5, 1.5, 2.5 have the weights 3/4, 3/4, 1/4, in total 7/4; reversed for the second.
  const row = createImage(4, 1, (x) => [x * 70, 0, 0]);
  const small = resize(row, [0, 0, 4, 1], 2, 1);
  expect(small.data[0]).toBe(Math.round((0 * 3 + 70 * 3 + 140) / 7));
  expect(small.data[3]).toBe(Math.round((70 + 140 * 3 + 210 * 3) / 7));
});

test('a constant image stays constant, and resizing to the same size copies', () => {
  for (const value of [0, 1, 127, 200, 255]) {
    const flat = createImage(61, 43, () => [value, value, value]);
    for (const [w, h] of [[16, 9], [64, 64], [200, 3]] as const) {
      expect(resize(flat, [0, 0, 61, 43], w, h).data.every((v) => v === value)).toBe(true);
    }
  }
  const from = createImage(9, 7, (x, y) => [x, y, 3]);
  const part = resize(from, [2, 1, 4, 5], 4, 5);
  expect([...part.data.subarray(0, 6)]).toEqual([2, 1, 3, 3, 1, 3]);
  expect([...part.data.subarray(-3)]).toEqual([5, 5, 3]);
});

test('the short side has the requested size, and long images are cropped', () => {
  for (const [width, height] of [[100, 80], [80, 100], [3, 500], [146, 146], [1, 1]] as const) {
    const small = resizeShortSide(createImage(width, height, () => [0, 0, 0]), 146);
    expect(Math.min(small.width, small.height)).toBe(146);
    const aspect = Math.min(Math.max(width / height, 0.25), 4);
    expect(Math.abs(small.width / small.height / aspect - 1)).toBeLessThan(0.01);
  }
});

test('preprocessing crops the center and normalizes each channel', () => {
  const pixel = (x: number, y: number): [number, number, number] => [x * 4, y * 6, 255];
  const settings = { resize: 40, mean: [0.5, 0.25, 0], std: [0.25, 0.5, 2] } as const;
  const out = preprocess(createImage(60, 40, pixel), { resize: settings.resize, mean: [...settings.mean], std: [...settings.std] }, 32);
  expect(out).toHaveLength(3 * 32 * 32);
  for (let channel = 0; channel < 3; channel++) {
    for (const [x, y] of [[0, 0], [31, 0], [7, 30], [31, 31]] as const) {
      const exact = (pixel(x + 14, y + 4)[channel]! / 255 - settings.mean[channel]!) / settings.std[channel]!;
      expect(out[(channel * 32 + y) * 32 + x]).toBeCloseTo(exact, 5);
    }
  }
});

test('the alpha channel is removed', () => {
  expect([...toRgb(Uint8ClampedArray.from([1, 2, 3, 255, 4, 5, 6, 255]), 2, 1).data]).toEqual([1, 2, 3, 4, 5, 6]);
});

test('values become bytes: ties round up, NaN is black, and the range is clamped', () => {
  const values = Float32Array.from({ length: 3 * 64 }, (_, i) => i / 127.5 - 1);
  const pixels = toPixels(values, 8, [-1, 1]);
  for (let i = 0; i < 64; i++) expect([...pixels.subarray(4 * i, 4 * i + 4)]).toEqual([i, 64 + i, 128 + i, 255]);
  const odd = toPixels(Float32Array.from([NaN, 7, -7]), 1, [-1, 1]);
  expect([...odd]).toEqual([0, 255, 0, 255]);
  // 0 maps to 127.5, a tie.
  expect([...toPixels(Float32Array.from([0, 0, 0]), 1, [-1, 1])]).toEqual([128, 128, 128, 255]);
  expect([...toPixels(Float32Array.from([0, 1, 0.5]), 1, [0, 1])]).toEqual([0, 255, 128, 255]);
});

test('probabilities are the sorted softmax, and equal ones keep their order', () => {
  const found = softmax(Float32Array.from([1, 3, -1, 1]), ['a', 'b', 'c', 'd']);
  expect(found.map((c) => c.label)).toEqual([1, 0, 3, 2]);
  const sum = Math.exp(1) + Math.exp(3) + Math.exp(-1) + Math.exp(1);
  expect(found[0]!.probability).toBeCloseTo(Math.exp(3) / sum, 14);
  expect(softmax(Float32Array.from([3e38, -3e38]), ['a', 'b'])[0]!.probability).toBe(1);
});

test('headers contain format and size', () => {
  const png = Uint8Array.from([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10, 0, 0, 0, 13, 0x49, 0x48, 0x44, 0x52, 0, 0, 1, 2, 0, 0, 0, 7]);
  expect(readImageHeader(png)).toEqual({ format: 'PNG', width: 258, height: 7 });
  const jpeg = Uint8Array.from([0xff, 0xd8, 0xff, 0xe0, 0, 4, 0, 0, 0xff, 0xc2, 0, 17, 8, 1, 0, 2, 0, 3, 0, 0, 0, 0]);
  expect(readImageHeader(jpeg)).toEqual({ format: 'JPEG', width: 512, height: 256 });
  const webp = new Uint8Array(30);
  webp.set(new TextEncoder().encode('RIFF____WEBPVP8X'));
  webp.set([9, 0, 0, 4, 0, 0], 24);
  expect(readImageHeader(webp)).toEqual({ format: 'WebP', width: 10, height: 5 });
  expect(readImageHeader(new TextEncoder().encode('not an image'))).toBeNull();
  for (let end = 0; end < jpeg.length; end++) readImageHeader(jpeg.subarray(0, end));
  for (let end = 0; end < webp.length; end++) readImageHeader(webp.subarray(0, end));
});
