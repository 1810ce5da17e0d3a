/**
 * Samples images from noise with a flow-matching network. Uses the arithmetic of `export/src/sample/mod.rs`.
 *
 * Time runs from t = 0, noise, to t = 1, the image, on a uniform grid. The path is straight, x_t = t·x + (1−t)·ε, so a network that
 * predicts the clean image x̂ gives the velocity v = (x̂ − x_t)/max(1−t, 0.05) (JiT, arXiv 2511.13720). Its last step returns x̂ itself.
 * The predictions of a velocity network are integrated directly. All times are rounded to single precision, so that all implementations
 * agree on which times are in the guidance interval, including its ends.
 */
import { Canceled, UserError } from './errors.ts';
import type { Prediction, SamplerName } from './meta.ts';

/** The lower bound of 1 − t as a divisor, in training and sampling. */
export const CLAMP = Math.fround(0.05);
export const MAX_STEPS = 10_000;
export const MAX_GUIDANCE = 1000;

/** A network that can be sampled from. */
export interface Denoiser {
  /**
   * Predicts for `n` noisy images `x`, `[n, length]`, at time `t`, with a label for each.
   * The next call may overwrite the result; `x` is not retained.
   */
  predict(x: Float32Array, t: number, labels: readonly number[]): Promise<Float32Array>;
}

export interface Settings {
  sampler: SamplerName;
  steps: number;
  /** The scale of classifier-free guidance (arXiv 2207.12598); 1 disables it and halves the work. */
  guidance: number;
  /** Guidance applies to times in this interval, including its ends (arXiv 2404.07724). */
  guidanceInterval: readonly [number, number];
  prediction: Prediction;
  /** The label of the unconditional pass. */
  nullLabel: number;
}

/** The progress after each step. */
export interface StepReport {
  /** Finished steps. */
  done: number;
  total: number;
  /** The predicted clean images; for a velocity network, the current noisy images. */
  preview: Float32Array;
}

export interface Hooks {
  step?(report: StepReport): void | Promise<void>;
  /** Called before every evaluation of the network. */
  isCanceled?(): boolean | Promise<boolean>;
}

function validate(settings: Settings): void {
  const { steps, guidance, guidanceInterval } = settings;
  if (!Number.isInteger(steps) || steps < 1 || steps > MAX_STEPS) {
    throw new UserError(`steps: expected 1 to ${MAX_STEPS}, found ${steps}`);
  }
  if (!(Math.abs(guidance) <= MAX_GUIDANCE)) {
    throw new UserError(`guidance: expected a number up to ${MAX_GUIDANCE}, found ${guidance}`);
  }
  if (!guidanceInterval.every(Number.isFinite)) {
    throw new UserError(`guidance_interval: expected two times, found ${guidanceInterval.join(', ')}`);
  }
}

/** The number of network evaluations with and without guidance. */
export function evaluations(settings: Settings): { plain: number; guided: number } {
  const count = { plain: 0, guided: 0 };
  for (let step = 0; step < settings.steps; step++) {
    for (const t of evaluationTimes(settings, step)) count[isGuided(settings, t) ? 'guided' : 'plain']++;
  }
  return count;
}

function evaluationTimes(settings: Settings, step: number): number[] {
  const { steps, sampler } = settings;
  const from = Math.fround(step / steps);
  const to = Math.fround((step + 1) / steps);
  const isLast = step + 1 === steps && settings.prediction === 'x';
  if (sampler === 'euler' || isLast) return [from];
  return sampler === 'heun' ? [from, to] : [from, midpoint(from, to)];
}

const midpoint = (from: number, to: number) => Math.fround(from + Math.fround(to - from) / 2);

function isGuided(settings: Settings, t: number): boolean {
  const [from, to] = settings.guidanceInterval;
  return Math.fround(settings.guidance) !== 1 && t >= Math.fround(from) && t <= Math.fround(to);
}

/**
 * Samples images from their noise `x`, `[n, length]`, in place, and returns `x`. An image does not depend on the others in the batch.
 */
export async function sample(
  denoiser: Denoiser,
  settings: Settings,
  labels: readonly number[],
  x: Float32Array,
  hooks: Hooks = {},
): Promise<Float32Array> {
  validate(settings);
  const flow = new Flow(denoiser, settings, labels, x, hooks);
  for (let step = 0; step < settings.steps; step++) {
    await flow.step(step);
    if (!allFinite(flow.x)) throw new UserError(`the network returned NaN or infinity in step ${step + 1}`);
    await hooks.step?.({ done: step + 1, total: settings.steps, preview: flow.preview });
  }
  return flow.x;
}

/** True if all numbers are finite. */
export function allFinite(values: Float32Array): boolean {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i]!)) return false;
  return true;
}

/** The state of one batch. All steps share its buffers. */
class Flow {
  preview: Float32Array;
  private readonly doubled: Float32Array;
  private readonly bothLabels: number[];
  private readonly clean: Float32Array;
  private readonly slope: Float32Array;
  private readonly end: Float32Array;

  constructor(
    private readonly denoiser: Denoiser,
    private readonly settings: Settings,
    private readonly labels: readonly number[],
    readonly x: Float32Array,
    private readonly hooks: Hooks,
  ) {
    this.doubled = new Float32Array(2 * x.length);
    this.bothLabels = [...labels, ...labels.map(() => settings.nullLabel)];
    this.clean = new Float32Array(x.length);
    this.slope = new Float32Array(x.length);
    this.end = new Float32Array(x.length);
    this.preview = x;
  }

  /** Integrates from grid point `step` to the next one. */
  async step(step: number): Promise<void> {
    const { steps, sampler, prediction } = this.settings;
    const { x, slope, end } = this;
    const from = Math.fround(step / steps);
    const to = Math.fround((step + 1) / steps);
    const width = Math.fround(to - from);
    const half = Math.fround(width / 2);

    const first = await this.predict(x, from);
    if (prediction === 'x') {
      this.clean.set(first);
      this.preview = this.clean;
      if (step + 1 === steps) {
        x.set(first);
        return;
      }
    }
    this.velocity(x, first, from, slope);
    switch (sampler) {
      case 'euler':
        advance(x, x, slope, width);
        return;
      case 'heun': {
        advance(end, x, slope, width);
        advance(x, x, slope, half);
        this.velocity(end, await this.predict(end, to), to, slope);
        advance(x, x, slope, half);
        return;
      }
      case 'midpoint': {
        const center = midpoint(from, to);
        advance(end, x, slope, half);
        this.velocity(end, await this.predict(end, center), center, slope);
        advance(x, x, slope, width);
        return;
      }
    }
  }

  /** The prediction with guidance if it applies: null + guidance·(conditional − null), both in one batch. */
  private async predict(x: Float32Array, t: number): Promise<Float32Array> {
    if (await this.hooks.isCanceled?.()) throw new Canceled();
    if (!isGuided(this.settings, t)) return expectLength(await this.denoiser.predict(x, t, this.labels), x.length);
    const n = x.length;
    this.doubled.set(x);
    this.doubled.set(x, n);
    const both = expectLength(await this.denoiser.predict(this.doubled, t, this.bothLabels), 2 * n);
    const guidance = Math.fround(this.settings.guidance);
    for (let i = 0; i < n; i++) {
      const unconditional = both[n + i]!;
      both[i] = unconditional + guidance * (both[i]! - unconditional);
    }
    return both.subarray(0, n);
  }

  /** Computes the velocity at `x` and `t` from a prediction. */
  private velocity(x: Float32Array, prediction: Float32Array, t: number, out: Float32Array): void {
    if (this.settings.prediction === 'velocity') {
      out.set(prediction);
      return;
    }
    const remaining = Math.max(Math.fround(1 - t), CLAMP);
    for (let i = 0; i < out.length; i++) out[i] = (prediction[i]! - x[i]!) / remaining;
  }
}

function expectLength(values: Float32Array, length: number): Float32Array {
  if (values.length === length) return values;
  throw new UserError(`prediction: expected ${length} numbers, found ${values.length}`);
}

/** `out = x + width·slope`. */
function advance(out: Float32Array, x: Float32Array, slope: Float32Array, width: number): void {
  for (let i = 0; i < out.length; i++) out[i] = x[i]! + width * slope[i]!;
}
