/**
 * The noise that a picture is drawn from: specified, so that every language draws the same cat from the same seed.
 *
 * One ChaCha20 stream a picture, read as little-endian 32-bit words. Its 32-byte key is the seed and the purpose (0, noise), 8 bytes each,
 * little-endian, then zeros; its nonce is the picture's number, and its counter of blocks has 64 bits. A uniform number takes one word w:
 * ((w >> 8) + 1) / 2²⁴, in (0, 1]. Two of them give two normal numbers by Box and Muller in double precision, rounded to single
 * precision, in channel, row, column order. `models/src/random.rs` specifies it, `models/noise-vectors.json` has numbers to test with.
 */
import { chacha20orig } from '@noble/ciphers/chacha.js';

const MASK = (1n << 64n) - 1n;

/** A seed or a picture's number, made to fit 64 bits as unsigned numbers do. */
export function wrap64(value: bigint): bigint {
  return value & MASK;
}

/** `count` words of stream `index`, after `skip` of them. */
export function words(seed: bigint, purpose: bigint, index: bigint, skip: number, count: number): Uint32Array {
  const key = new Uint8Array(32);
  const keyView = new DataView(key.buffer);
  keyView.setBigUint64(0, wrap64(seed), true);
  keyView.setBigUint64(8, wrap64(purpose), true);
  const nonce = new Uint8Array(8);
  new DataView(nonce.buffer).setBigUint64(0, wrap64(index), true);
  // The cipher adds its stream to a message; zeros leave the stream itself.
  const stream = chacha20orig(key, nonce, new Uint8Array((skip + count) * 4));
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  const out = new Uint32Array(count);
  for (let i = 0; i < count; i++) out[i] = view.getUint32((skip + i) * 4, true);
  return out;
}

/** Uniform in (0, 1], 24 bits. */
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

/** The noise of picture `index` of `seed`: `length` standard normal numbers. */
export function noise(seed: bigint, index: bigint, length: number): Float32Array {
  const even = length + (length % 2);
  return normals(words(seed, 0n, index, 0, even)).subarray(0, length);
}

/** How much of another noise is mixed in for a picture near another one. */
export const NEAR = 0.35;

/** Neighbours of one picture that have noise of their own; more would meet those of the next depth. */
export const MOST_NEIGHBOURS = 99;

/**
 * The noise of a neighbour. `path` says how it is reached: at each depth the noise is turned a little towards that of another seed,
 * √(1 − s²)·noise + s·other, which keeps its variance at 1 because both are independent. Neighbour 0 is the picture itself.
 */
export function nearbyNoise(seed: bigint, index: bigint, path: readonly number[], length: number): Float32Array {
  const out = noise(seed, index, length).slice();
  const keep = Math.sqrt(1 - NEAR * NEAR);
  path.forEach((neighbour, depth) => {
    if (neighbour === 0) return;
    const offset = BigInt(depth * (MOST_NEIGHBOURS + 1) + neighbour);
    const other = noise(wrap64(seed + offset), index, length);
    for (let i = 0; i < length; i++) out[i] = keep * out[i]! + NEAR * other[i]!;
  });
  return out;
}
