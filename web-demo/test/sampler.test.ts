import { expect, test } from 'vitest';
import { Canceled } from '../src/engine/errors.ts';
import type { Prediction, SamplerName } from '../src/engine/meta.ts';
import { noise } from '../src/engine/noise.ts';
import { type Denoiser, type Settings, evaluations, sample } from '../src/engine/sampler.ts';

const SAMPLERS: SamplerName[] = ['euler', 'heun', 'midpoint'];
const LENGTH = 12;
const f = Math.fround;

const color = (label: number) => f(0.1 * label);

/** Predicts an image with one color per label, and records its calls. */
class ExactDenoiser implements Denoiser {
  largestBatch = 0;
  readonly times: number[] = [];
  readonly batches: number[] = [];

  constructor(private readonly prediction: Prediction) {}

  async predict(x: Float32Array, t: number, labels: readonly number[]): Promise<Float32Array> {
    this.largestBatch = Math.max(this.largestBatch, labels.length);
    this.times.push(t);
    this.batches.push(labels.length);
    const length = x.length / labels.length;
    return x.map((value, i) => {
      const clean = color(labels[Math.floor(i / length)]!);
      return this.prediction === 'x' ? clean : (clean - value) / Math.max(1 - t, 1e-3);
    });
  }
}

/** x' = x·cos(t), so x(1) = x(0)·exp(sin 1). */
const curve: Denoiser = { predict: async (x, t) => x.map((value) => value * Math.cos(t)) };

const settings = (prediction: Prediction, change: Partial<Settings> = {}): Settings => ({
  sampler: 'heun',
  steps: 7,
  guidance: 1,
  guidanceInterval: [0.1, 0.9],
  prediction,
  nullLabel: 5,
  ...change,
});

const start = (n: number) => {
  const x = new Float32Array(n * LENGTH);
  for (let i = 0; i < n; i++) x.set(noise(3n, BigInt(i), LENGTH), i * LENGTH);
  return x;
};

test('the last step returns the prediction, and the network is never evaluated at t = 1', async () => {
  for (const sampler of SAMPLERS) {
    for (const steps of [1, 2, 20]) {
      const denoiser = new ExactDenoiser('x');
      const out = await sample(denoiser, settings('x', { sampler, steps }), [0, 1, 2], start(3));
      out.forEach((value, i) => expect(value).toBe(color(Math.floor(i / LENGTH))));
      expect(Math.max(...denoiser.times)).toBeLessThan(1);
    }
  }
});

test('the samplers converge with their order', async () => {
  for (const [sampler, order] of [['euler', 1], ['heun', 2], ['midpoint', 2]] as const) {
    const error = async (steps: number) => {
      const out = await sample(curve, settings('velocity', { sampler, steps }), [0], start(1));
      const x0 = start(1);
      return Math.max(...[...out].map((y, i) => Math.abs(y - x0[i]! * Math.exp(Math.sin(1)))));
    };
    const ratio = (await error(8)) / (await error(16));
    expect(Math.abs(ratio / 2 ** order - 1)).toBeLessThan(0.2);
  }
});

/** For calculations by hand: a network that predicts p(x, t) = x/2 + t. */
const line: Denoiser = { predict: async (x, t) => x.map((value) => value / 2 + t) };

test('two steps with x-prediction match a calculation by hand', async () => {
  // v(1, 0) = (0.5 − 1)/1 = −0.5.
  // Euler: x = 1 − 0.25 = 0.75; the last step returns 0.375 + 0.5.
  // Heun: end = 0.75, v(0.75, 0.5) = (0.875 − 0.75)/0.5 = 0.25; x = 1 − 0.125 + 0.0625 = 0.9375; returns 0.46875 + 0.5.
  // Midpoint: half = 0.875, v(0.875, 0.25) = (0.6875 − 0.875)/0.75 = −0.25; x = 1 − 0.125 = 0.875; returns 0.4375 + 0.5.
  const expected = { euler: 0.875, heun: 0.96875, midpoint: 0.9375 };
  for (const sampler of SAMPLERS) {
    const out = await sample(line, settings('x', { sampler, steps: 2 }), [0], new Float32Array([1]));
    expect(out[0]).toBe(expected[sampler]);
  }
});

test('two steps with a velocity match a calculation by hand', async () => {
  // v(x, t) = x/2 + t.
  // Euler: 1 + 0.25 = 1.25; v = 1.125; 1.25 + 0.5625.
  // Heun: 1.25, v(1.25, 0.5) = 1.125; x = 1 + 0.125 + 0.28125 = 1.40625; v = 1.203125, end 2.0078125, v(·, 1) = 2.00390625;
  //   1.40625 + 0.30078125 + 0.5009765625.
  // Midpoint: 1.125, v(1.125, 0.25) = 0.8125; x = 1.40625; v = 1.203125, half 1.70703125, v(·, 0.75) = 1.603515625; + 0.8017578125.
  const expected = { euler: 1.8125, heun: 2.2080078125, midpoint: 2.2080078125 };
  for (const sampler of SAMPLERS) {
    const out = await sample(line, settings('velocity', { sampler, steps: 2 }), [0], new Float32Array([1]));
    expect(out[0]).toBe(expected[sampler]);
  }
});

test('1 - t is clamped near the end', async () => {
  // 40 steps: 1 − t = 0.05 at t = 38/40, the step before the last; with Heun, 1 − t = 0.025 < 0.05 at t = 0.975.
  const slopes: number[] = [];
  const still: Denoiser = {
    predict: async (x, t) => {
      if (t > 0.96) slopes.push(x[0]!);
      return x.map((value) => value + 1);
    },
  };
  await sample(still, settings('x', { sampler: 'euler', steps: 40 }), [0], new Float32Array([0]));
  // Each Euler step adds 1/40/(1 − t) with 1 − t clamped; the last evaluation gets the sum.
  let x = 0;
  for (let step = 0; step < 39; step++) {
    const t = f(step / 40);
    const remaining = Math.max(f(1 - t), f(0.05));
    x = f(x + f(f((step + 1) / 40) - t) * f(f(f(x + 1) - x) / remaining));
  }
  expect(slopes).toHaveLength(1);
  expect(slopes[0]).toBeCloseTo(x, 5);
});

test('guidance uses one batch with the null class, and only in its interval', async () => {
  const guided = settings('x', { guidance: 3, guidanceInterval: [0, 1] });
  const denoiser = new ExactDenoiser('x');
  const out = await sample(denoiser, guided, [1], start(1));
  const expected = color(5) + 3 * (color(1) - color(5));
  for (const value of out) expect(Math.abs(value - expected)).toBeLessThan(1e-6);
  expect(denoiser.largestBatch).toBe(2);

  const outside = new ExactDenoiser('x');
  await sample(outside, { ...guided, guidanceInterval: [2, 3] }, [1], start(1));
  expect(outside.largestBatch).toBe(1);
  const none = new ExactDenoiser('x');
  await sample(none, { ...guided, guidance: 1 }, [1], start(1));
  expect(none.largestBatch).toBe(1);
});

test('the interval includes its ends in single precision', async () => {
  // 2/20 equals 0.1 in single precision, but not in double precision.
  const denoiser = new ExactDenoiser('x');
  await sample(denoiser, settings('x', { sampler: 'euler', steps: 20, guidance: 2 }), [1], start(1));
  const guided = denoiser.times.filter((_, i) => denoiser.batches[i] === 2);
  expect(guided).toHaveLength(17);
  expect(guided[0]).toBe(f(0.1));
  expect(guided.at(-1)).toBe(f(0.9));
});

test('an image does not depend on the others in its batch', async () => {
  for (const sampler of SAMPLERS) {
    const guided = settings('velocity', { sampler, guidance: 2 });
    const together = await sample(curve, guided, [0, 1, 2, 0], start(4));
    const alone = await sample(curve, guided, [2], start(4).slice(2 * LENGTH, 3 * LENGTH));
    expect(alone).toEqual(together.slice(2 * LENGTH, 3 * LENGTH));
  }
});

test('evaluations counts the network evaluations of a run', async () => {
  for (const sampler of SAMPLERS) {
    for (const prediction of ['x', 'velocity'] as const) {
      const current = settings(prediction, { sampler, steps: 20, guidance: 2 });
      const denoiser = new ExactDenoiser(prediction);
      await sample(denoiser, current, [1], start(1));
      const { plain, guided } = evaluations(current);
      expect(plain).toBe(denoiser.batches.filter((n) => n === 1).length);
      expect(guided).toBe(denoiser.batches.filter((n) => n === 2).length);
    }
  }
});

test('previews are the predicted clean image, or the current state with a velocity', async () => {
  const previews: number[] = [];
  await sample(new ExactDenoiser('x'), settings('x', { steps: 3 }), [4], start(1), { step: ({ preview }) => void previews.push(preview[0]!) });
  expect(previews).toEqual([color(4), color(4), color(4)]);
  let state: Float32Array | undefined;
  const x = start(1);
  const out = await sample(curve, settings('velocity', { steps: 2 }), [0], x, { step: ({ preview }) => void (state = preview) });
  expect(state).toBe(out);
});

test('sampling can be canceled before each evaluation', async () => {
  const denoiser = new ExactDenoiser('x');
  const promise = sample(denoiser, settings('x'), [0], start(1), { isCanceled: () => denoiser.times.length === 3 });
  await expect(promise).rejects.toBeInstanceOf(Canceled);
  expect(denoiser.times).toHaveLength(3);
});

test('invalid settings and outputs give errors that name the field', async () => {
  const invalid: [string, Partial<Settings>][] = [
    ['steps', { steps: 0 }],
    ['steps', { steps: 1e9 }],
    ['steps', { steps: 1.5 }],
    ['guidance', { guidance: NaN }],
    ['guidance', { guidance: 1e6 }],
    ['guidance_interval', { guidanceInterval: [NaN, 1] }],
  ];
  for (const [field, change] of invalid) {
    await expect(sample(curve, settings('x', change), [0], start(1))).rejects.toThrow(new RegExp(`^${field}: `));
  }
  const broken: Denoiser = { predict: async (x) => x.map(() => NaN) };
  await expect(sample(broken, settings('x'), [0], start(1))).rejects.toThrow('NaN or infinity in step 1');
  const short: Denoiser = { predict: async () => new Float32Array(3) };
  await expect(sample(short, settings('x'), [0], start(1))).rejects.toThrow('expected 12 numbers, found 3');
});
