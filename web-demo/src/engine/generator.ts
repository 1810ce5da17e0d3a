/** Pictures from a network, batch by batch. */
import { nearbyNoise } from './noise.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import { toPixels } from './pixels.ts';
import type { Draw, DrawRequest, DrawResult, Pixels, StepEvent } from './protocol.ts';
import { type Hooks, type Settings, sample } from './sampler.ts';
import { UserError } from './errors.ts';

/** Pictures that are drawn at once. Processors gain little from more, and the page would wait longer for each step; cards gain much. */
export const BATCH = { wasm: 4, webgpu: 16 };

export function settingsOf(meta: GeneratorMeta, request: Pick<DrawRequest, 'steps' | 'guidance' | 'sampler'>): Settings {
  return {
    sampler: request.sampler,
    steps: request.steps,
    guidance: request.guidance,
    guidanceInterval: meta.defaults.guidanceInterval,
    prediction: meta.prediction,
    nullLabel: meta.nullLabel,
  };
}

/** Draws all of `request`. `tell` gets the pictures as the network sees them after each step; the last event of a batch has the final ones. */
export async function draw(
  network: Network,
  meta: GeneratorMeta,
  request: DrawRequest,
  cancelled: NonNullable<Hooks['cancelled']>,
  tell: (event: StepEvent) => void,
): Promise<DrawResult> {
  const wrong = request.draws.find(({ label }) => !(Number.isInteger(label) && label >= 0 && label < meta.classes.length));
  if (wrong) throw new UserError(`label: expected less than ${meta.classes.length}, found ${wrong.label}`);
  const settings = settingsOf(meta, request);
  const batch = BATCH[network.device.backend];
  const before = { ms: network.ms, runs: network.runs };
  const start = performance.now();
  const stepMs: number[] = [];
  for (let first = 0; first < request.draws.length; first += batch) {
    const draws = request.draws.slice(first, first + batch);
    let last = performance.now();
    const step: Hooks['step'] = ({ done, total, preview }) => {
      const now = performance.now();
      stepMs.push(now - last);
      const overall = (first + (draws.length * done) / total) / request.draws.length;
      tell({ first, pictures: pixels(preview, meta), done, steps: total, overall, stepMs: now - last });
      last = performance.now();
    };
    await sample(network, settings, draws.map((d) => d.label), noiseOf(request.seed, draws, meta), { step, cancelled });
  }
  return {
    totalMs: performance.now() - start,
    stepMs,
    networkMs: network.ms - before.ms,
    evaluations: network.runs - before.runs,
    device: network.device,
  };
}

function noiseOf(seed: bigint, draws: readonly Draw[], meta: GeneratorMeta): Float32Array {
  const length = 3 * meta.imageSize ** 2;
  const x = new Float32Array(draws.length * length);
  draws.forEach(({ index, near }, i) => x.set(nearbyNoise(seed, index, near, length), i * length));
  return x;
}

function pixels(values: Float32Array, meta: GeneratorMeta): Pixels[] {
  const { imageSize: size, valueRange } = meta;
  const length = 3 * size * size;
  const count = values.length / length;
  return Array.from({ length: count }, (_, i) => ({ size, rgba: toPixels(values.subarray(i * length, (i + 1) * length), size, valueRange) }));
}
