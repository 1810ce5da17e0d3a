import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { NEIGHBOR_WEIGHT, neighborNoise, noise, normals, uniform, words, wrap64 } from '../src/engine/noise.ts';

interface Vector {
  seed: string;
  purpose: number;
  index: string;
  skip: number;
  words: number[];
  uniforms: number[];
  normals: number[];
}

const vectors = JSON.parse(readFileSync(new URL('../../models/noise-vectors.json', import.meta.url), 'utf8')) as Vector[];

/** The bits of a single-precision number as an integer: adjacent numbers differ by 1. */
const bits = (value: number) => new Int32Array(new Float32Array([value]).buffer)[0]!;

test('streams match the test vectors', () => {
  expect(vectors.length).toBeGreaterThanOrEqual(8);
  for (const v of vectors) {
    const stream = words(BigInt(v.seed), BigInt(v.purpose), BigInt(v.index), v.skip, 8);
    expect([...stream]).toEqual(v.words);
    expect([...stream].map(uniform)).toEqual(v.uniforms);
    const numbers = normals(stream);
    expect(v.normals).toHaveLength(8);
    // Math libraries differ in the last bit, which can change the rounding.
    v.normals.forEach((expected, i) => expect(Math.abs(bits(numbers[i]!) - bits(expected))).toBeLessThanOrEqual(1));
  }
});

test('the noise of an image is the stream of its index, and its start does not depend on the length', () => {
  const v = vectors.find(({ purpose, skip, index }) => purpose === 0 && skip === 0 && index === '1')!;
  const long = noise(BigInt(v.seed), 1n, 3072);
  expect(long).toHaveLength(3072);
  v.normals.forEach((expected, i) => expect(Math.abs(bits(long[i]!) - bits(expected))).toBeLessThanOrEqual(1));
  expect(noise(0n, 1n, 7)).toEqual(long.subarray(0, 7));
  expect(noise(0n, 2n, 7)).not.toEqual(long.subarray(0, 7));
});

test('seeds wrap at 64 bits', () => {
  expect(wrap64(-1n)).toBe(2n ** 64n - 1n);
  expect(noise(2n ** 64n + 3n, 0n, 8)).toEqual(noise(3n, 0n, 8));
});

test('the noise of a neighbor has unit variance and is correlated with that of the image', () => {
  const length = 40_000;
  const own = noise(5n, 2n, length);
  for (const path of [[1], [7], [1, 1], [3, 9]]) {
    const near = neighborNoise(5n, 2n, path, length);
    const mean = (values: Float32Array) => values.reduce((a, b) => a + b, 0) / length;
    const variance = mean(near.map((v) => v * v)) - mean(near) ** 2;
    expect(Math.abs(variance - 1)).toBeLessThan(0.04);
    const correlation = mean(near.map((v, i) => v * own[i]!));
    expect(Math.abs(correlation - Math.sqrt(1 - NEIGHBOR_WEIGHT * NEIGHBOR_WEIGHT) ** path.length)).toBeLessThan(0.04);
  }
  expect(neighborNoise(5n, 2n, [], 64)).toEqual(noise(5n, 2n, 64));
  expect(neighborNoise(5n, 2n, [0, 0], 64)).toEqual(noise(5n, 2n, 64));
  expect(neighborNoise(5n, 2n, [1], 64)).not.toEqual(neighborNoise(5n, 2n, [0, 1], 64));
});
