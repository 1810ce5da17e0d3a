/**
 * Sampling: from noise to pictures along the flow that a network has learned. The same arithmetic as `export/src/sample/mod.rs`.
 *
 * Time runs from t = 0, noise, to t = 1, the picture, on a uniform grid. The path is straight, x_t = t·x + (1−t)·ε, so a network that
 * predicts the clean picture x̂ gives the velocity v = (x̂ − x_t)/max(1−t, 0.05) (JiT, arXiv 2511.13720). Its last step returns x̂ itself.
 * A network that predicts velocities is integrated as it is. All times are rounded to single precision, because whether a time lies in
 * the guidance interval, its ends included, must not depend on the language.
 */
import { Cancelled, UserError } from './errors.ts';
import type { Prediction, SamplerName } from './meta.ts';

/** The least 1 − t that a difference is divided by, in training and sampling alike. */
export const CLAMP = Math.fround(0.05);
export const MAX_STEPS = 10_000;
export const MAX_GUIDANCE = 1000;

/** A network that can be sampled from. */
export interface Denoiser {
  /**
   * What it predicts for `n` noisy pictures `x` (`n · length` numbers, one after another) at time `t`, with a label for each.
   * The result may be overwritten by the next call; `x` is not kept.
   */
  predict(x: Float32Array, t: number, labels: readonly number[]): Promise<Float32Array>;
}

export interface Settings {
  sampler: SamplerName;
  steps: number;
  /** Weight of classifier-free guidance (arXiv 2207.12598); 1 is none, and half the work. */
  guidance: number;
  /** Guidance holds for times in this interval, its ends included (arXiv 2404.07724). */
  guidanceInterval: readonly [number, number];
  prediction: Prediction;
  /** The label of the unconditional pass. */
  nullLabel: number;
}

/** What a caller learns after each step. */
export interface StepReport {
  /** Steps done. */
  done: number;
  total: number;
  /** What the network takes for the clean pictures now; for a network of velocities, the pictures as they are on their way. */
  preview: Float32Array;
}

export interface Hooks {
  step?(report: StepReport): void | Promise<void>;
  /** Asked before every evaluation of the network. */
  cancelled?(): boolean | Promise<boolean>;
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

/** How often the network is evaluated, and whether with guidance, for `settings`: what a run costs. */
export function evaluations(settings: Settings): { plain: number; guided: number } {
  const count = { plain: 0, guided: 0 };
  for (let step = 0; step < settings.steps; step++) {
    for (const t of times(settings, step)) count[isGuided(settings, t) ? 'guided' : 'plain']++;
  }
  return count;
}

function times(settings: Settings, step: number): number[] {
  const { steps, sampler } = settings;
  const from = Math.fround(step / steps);
  const to = Math.fround((step + 1) / steps);
  const last = step + 1 === steps && settings.prediction === 'x';
  if (sampler === 'euler' || last) return [from];
  return sampler === 'heun' ? [from, to] : [from, middle(from, to)];
}

const middle = (from: number, to: number) => Math.fround(from + Math.fround(to - from) / 2);

function isGuided(settings: Settings, t: number): boolean {
  const [from, to] = settings.guidanceInterval;
  return Math.fround(settings.guidance) !== 1 && t >= Math.fround(from) && t <= Math.fround(to);
}

/**
 * Draws pictures from `x`, their noise one after another, which it changes; the result is `x` where the last step did not make it anew.
 * A picture does not depend on those it is drawn with.
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
    if (!allFinite(flow.x)) throw new UserError(`the network returned something that is no finite number in step ${step + 1}`);
    await hooks.step?.({ done: step + 1, total: settings.steps, preview: flow.preview });
  }
  return flow.x;
}

/** Whether all numbers are finite. */
export function allFinite(values: Float32Array): boolean {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i]!)) return false;
  return true;
}

/** One batch on its way. Buffers are made once and used in all steps. */
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

  /** From the grid's point `step` to the next one. */
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
        const between = middle(from, to);
        advance(end, x, slope, half);
        this.velocity(end, await this.predict(end, between), between, slope);
        advance(x, x, slope, width);
        return;
      }
    }
  }

  /** The prediction, guided where it has to be: null + guidance·(conditional − null), both in one batch. */
  private async predict(x: Float32Array, t: number): Promise<Float32Array> {
    if (await this.hooks.cancelled?.()) throw new Cancelled();
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

  /** The velocity at `x` and `t` that follows from a prediction. */
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
