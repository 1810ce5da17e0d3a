/**
 * The initial noise of an image. It is specified, so that all implementations generate the same image from the same seed.
 *
 * Each image has a ChaCha20 stream, read as little-endian 32-bit words. Its 32-byte key is the seed and the purpose (0, noise), 8 bytes
 * each, little-endian, then zeros. Its nonce is the index of the image, and its block counter has 64 bits. A uniform number takes one word
 * w: ((w >> 8) + 1) / 2²⁴, in (0, 1]. Two of them give two normal numbers by the Box-Muller transform in double precision, rounded to
 * single precision, in channel, row, column order. `models/src/random.rs` specifies it; `models/noise-vectors.json` has test vectors.
 */
import { chacha20orig } from '@noble/ciphers/chacha.js';

const MASK = (1n << 64n) - 1n;

/** Wraps a seed or an index to an unsigned 64-bit integer. */
export function wrap64(value: bigint): bigint {
  return value & MASK;
}

/** The `count` words of stream `index` that follow the first `skip` words. */
export function words(seed: bigint, purpose: bigint, index: bigint, skip: number, count: number): Uint32Array {
  const key = new Uint8Array(32);
  const keyView = new DataView(key.buffer);
  keyView.setBigUint64(0, wrap64(seed), true);
  keyView.setBigUint64(8, wrap64(purpose), true);
  const nonce = new Uint8Array(8);
  new DataView(nonce.buffer).setBigUint64(0, wrap64(index), true);
  // The cipher XORs its stream with a message; a message of zeros gives the stream itself.
  const stream = chacha20orig(key, nonce, new Uint8Array((skip + count) * 4));
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  const out = new Uint32Array(count);
  for (let i = 0; i < count; i++) out[i] = view.getUint32((skip + i) * 4, true);
  return out;
}

/** A uniform number in (0, 1] with 24 bits. */
export function uniform(word: number): number {
  return ((word >>> 8) + 1) / 2 ** 24;
}

/** Standard normal numbers from pairs of words. */
export function normals(pairs: Uint32Array): Float32Array {
  const out = new Float32Array(pairs.length);
  for (let i = 0; i + 1 < pairs.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(pairs[i]!)));
    const angle = 2 * Math.PI * uniform(pairs[i + 1]!);
    out[i] = radius * Math.cos(angle);
    out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

/** The noise of image `index` of `seed`: `length` standard normal numbers. */
export function noise(seed: bigint, index: bigint, length: number): Float32Array {
  const evenLength = length + (length % 2);
  return normals(words(seed, 0n, index, 0, evenLength)).subarray(0, length);
}

/** The weight s of the new noise in a neighbor's noise; see neighborNoise. */
export const NEIGHBOR_WEIGHT = 0.35;

/** The maximum number of neighbors of an image; a larger number would reuse seeds of the next depth. */
export const MAX_NEIGHBORS = 99;

/**
 * The noise of a neighbor. Each element of `path` is a neighbor of the previous one: its noise is √(1 − s²)·noise + s·other with the noise
 * of another seed, which keeps the variance at 1 because both are independent. Neighbor 0 is the image itself.
 */
export function neighborNoise(seed: bigint, index: bigint, path: readonly number[], length: number): Float32Array {
  const out = noise(seed, index, length).slice();
  const ownWeight = Math.sqrt(1 - NEIGHBOR_WEIGHT * NEIGHBOR_WEIGHT);
  path.forEach((neighbor, depth) => {
    if (neighbor === 0) return;
    const offset = BigInt(depth * (MAX_NEIGHBORS + 1) + neighbor);
    const other = noise(wrap64(seed + offset), index, length);
    for (let i = 0; i < length; i++) out[i] = ownWeight * out[i]! + NEIGHBOR_WEIGHT * other[i]!;
  });
  return out;
}
