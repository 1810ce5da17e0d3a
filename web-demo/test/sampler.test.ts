import { expect, test } from 'vitest';
import { Cancelled } from '../src/engine/errors.ts';
import type { Prediction, SamplerName } from '../src/engine/meta.ts';
import { noise } from '../src/engine/noise.ts';
import { type Denoiser, type Settings, evaluations, sample } from '../src/engine/sampler.ts';

const SAMPLERS: SamplerName[] = ['euler', 'heun', 'midpoint'];
const LENGTH = 12;
const f = Math.fround;

const colour = (label: number) => f(0.1 * label);

/** Knows the picture, of one colour by label, and how it was asked. */
class Oracle implements Denoiser {
  largest = 0;
  readonly times: number[] = [];
  readonly batches: number[] = [];

  constructor(private readonly prediction: Prediction) {}

  async predict(x: Float32Array, t: number, labels: readonly number[]): Promise<Float32Array> {
    this.largest = Math.max(this.largest, labels.length);
    this.times.push(t);
    this.batches.push(labels.length);
    const length = x.length / labels.length;
    return x.map((value, i) => {
      const clean = colour(labels[Math.floor(i / length)]!);
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

test('the last step returns the predicted picture itself, and t = 1 is never asked for', async () => {
  for (const sampler of SAMPLERS) {
    for (const steps of [1, 2, 20]) {
      const oracle = new Oracle('x');
      const out = await sample(oracle, settings('x', { sampler, steps }), [0, 1, 2], start(3));
      out.forEach((value, i) => expect(value).toBe(colour(Math.floor(i / LENGTH))));
      expect(Math.max(...oracle.times)).toBeLessThan(1);
    }
  }
});

test('the methods converge with their order', async () => {
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

/** By hand, for one number: x = 1, a network that predicts p(x, t) = x/2 + t. */
const line: Denoiser = { predict: async (x, t) => x.map((value) => value / 2 + t) };

test('two steps of each method of an x-prediction are those by hand', async () => {
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

test('two steps of each method of a velocity are those by hand', async () => {
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

test('near the end the difference is divided by the clamp', async () => {
  // 40 steps: at t = 39/40 − of the step before the last, 38/40, 1 − t = 0.05; with Heun t = 0.975 has 1 − t = 0.025 < 0.05.
  const slopes: number[] = [];
  const still: Denoiser = {
    predict: async (x, t) => {
      if (t > 0.96) slopes.push(x[0]!);
      return x.map((value) => value + 1);
    },
  };
  await sample(still, settings('x', { sampler: 'euler', steps: 40 }), [0], new Float32Array([0]));
  // Each Euler step adds 1/40/(1 − t), at least by the clamp; the last evaluation sees the sum.
  let x = 0;
  for (let step = 0; step < 39; step++) {
    const t = f(step / 40);
    const remaining = Math.max(f(1 - t), f(0.05));
    x = f(x + f(f((step + 1) / 40) - t) * f(f(f(x + 1) - x) / remaining));
  }
  expect(slopes).toHaveLength(1);
  expect(slopes[0]).toBeCloseTo(x, 5);
});

test('guidance moves away from the null class, in one batch, and only in its interval', async () => {
  const guided = settings('x', { guidance: 3, guidanceInterval: [0, 1] });
  const oracle = new Oracle('x');
  const out = await sample(oracle, guided, [1], start(1));
  const expected = colour(5) + 3 * (colour(1) - colour(5));
  for (const value of out) expect(Math.abs(value - expected)).toBeLessThan(1e-6);
  expect(oracle.largest).toBe(2);

  const never = new Oracle('x');
  await sample(never, { ...guided, guidanceInterval: [2, 3] }, [1], start(1));
  expect(never.largest).toBe(1);
  const none = new Oracle('x');
  await sample(none, { ...guided, guidance: 1 }, [1], start(1));
  expect(none.largest).toBe(1);
});

test("the interval's ends are included, in single precision", async () => {
  // 2/20 in single precision is the 0.1 of the interval; in double precision they differ.
  const oracle = new Oracle('x');
  await sample(oracle, settings('x', { sampler: 'euler', steps: 20, guidance: 2 }), [1], start(1));
  const guided = oracle.times.filter((_, i) => oracle.batches[i] === 2);
  expect(guided).toHaveLength(17);
  expect(guided[0]).toBe(f(0.1));
  expect(guided.at(-1)).toBe(f(0.9));
});

test('a picture does not depend on those it is drawn with', async () => {
  for (const sampler of SAMPLERS) {
    const all = settings('velocity', { sampler, guidance: 2 });
    const together = await sample(curve, all, [0, 1, 2, 0], start(4));
    const alone = await sample(curve, all, [2], start(4).slice(2 * LENGTH, 3 * LENGTH));
    expect(alone).toEqual(together.slice(2 * LENGTH, 3 * LENGTH));
  }
});

test('what a run costs is known beforehand', async () => {
  for (const sampler of SAMPLERS) {
    for (const prediction of ['x', 'velocity'] as const) {
      const how = settings(prediction, { sampler, steps: 20, guidance: 2 });
      const oracle = new Oracle(prediction);
      await sample(oracle, how, [1], start(1));
      const { plain, guided } = evaluations(how);
      expect(plain).toBe(oracle.batches.filter((n) => n === 1).length);
      expect(guided).toBe(oracle.batches.filter((n) => n === 2).length);
    }
  }
});

test('previews are the clean picture, or the state of a velocity', async () => {
  const seen: number[] = [];
  await sample(new Oracle('x'), settings('x', { steps: 3 }), [4], start(1), { step: ({ preview }) => void seen.push(preview[0]!) });
  expect(seen).toEqual([colour(4), colour(4), colour(4)]);
  let state: Float32Array | undefined;
  const x = start(1);
  const out = await sample(curve, settings('velocity', { steps: 2 }), [0], x, { step: ({ preview }) => void (state = preview) });
  expect(state).toBe(out);
});

test('sampling can be stopped before any evaluation', async () => {
  const oracle = new Oracle('x');
  const stopping = sample(oracle, settings('x'), [0], start(1), { cancelled: () => oracle.times.length === 3 });
  await expect(stopping).rejects.toBeInstanceOf(Cancelled);
  expect(oracle.times).toHaveLength(3);
});

test('settings that make no sense and numbers that are none are errors that name the field', async () => {
  const wrong: [string, Partial<Settings>][] = [
    ['steps', { steps: 0 }],
    ['steps', { steps: 1e9 }],
    ['steps', { steps: 1.5 }],
    ['guidance', { guidance: NaN }],
    ['guidance', { guidance: 1e6 }],
    ['guidance_interval', { guidanceInterval: [NaN, 1] }],
  ];
  for (const [field, change] of wrong) {
    await expect(sample(curve, settings('x', change), [0], start(1))).rejects.toThrow(new RegExp(`^${field}: `));
  }
  const broken: Denoiser = { predict: async (x) => x.map(() => NaN) };
  await expect(sample(broken, settings('x'), [0], start(1))).rejects.toThrow('no finite number in step 1');
  const short: Denoiser = { predict: async () => new Float32Array(3) };
  await expect(sample(short, settings('x'), [0], start(1))).rejects.toThrow('expected 12 numbers, found 3');
});
