/** Generates images with a network, batch by batch. */
import { neighborNoise } from './noise.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import { toPixels } from './pixels.ts';
import type { GenerateRequest, GenerateResult, ImageSpec, Pixels, StepEvent } from './protocol.ts';
import { type Hooks, type Settings, sample } from './sampler.ts';
import { UserError } from './errors.ts';

/** Images per batch. Larger batches speed up GPUs, but hardly CPUs, where they delay the updates of the page. */
export const BATCH = { wasm: 4, webgpu: 16 };

export function samplerSettings(meta: GeneratorMeta, request: Pick<GenerateRequest, 'steps' | 'guidance' | 'sampler'>): Settings {
  return {
    sampler: request.sampler,
    steps: request.steps,
    guidance: request.guidance,
    guidanceInterval: meta.defaults.guidanceInterval,
    prediction: meta.prediction,
    nullLabel: meta.nullLabel,
  };
}

/** Generates all images of `request`. `emit` gets the network's previews after each step; the last event of a batch has the final images. */
export async function generate(
  network: Network,
  meta: GeneratorMeta,
  request: GenerateRequest,
  isCanceled: NonNullable<Hooks['isCanceled']>,
  emit: (event: StepEvent) => void,
): Promise<GenerateResult> {
  const invalid = request.images.find(({ label }) => !(Number.isInteger(label) && label >= 0 && label < meta.classes.length));
  if (invalid) throw new UserError(`label: expected less than ${meta.classes.length}, found ${invalid.label}`);
  const settings = samplerSettings(meta, request);
  const batch = BATCH[network.device.backend];
  const before = { ms: network.ms, runs: network.runs };
  const start = performance.now();
  const stepMs: number[] = [];
  for (let first = 0; first < request.images.length; first += batch) {
    const images = request.images.slice(first, first + batch);
    let last = performance.now();
    const step: Hooks['step'] = ({ done, total, preview }) => {
      const now = performance.now();
      stepMs.push(now - last);
      const overall = (first + (images.length * done) / total) / request.images.length;
      emit({ first, images: toImages(preview, meta), done, steps: total, overall, stepMs: now - last });
      last = performance.now();
    };
    await sample(network, settings, images.map((image) => image.label), initialNoise(request.seed, images, meta), { step, isCanceled });
  }
  return {
    totalMs: performance.now() - start,
    stepMs,
    networkMs: network.ms - before.ms,
    evaluations: network.runs - before.runs,
    device: network.device,
  };
}

function initialNoise(seed: bigint, images: readonly ImageSpec[], meta: GeneratorMeta): Float32Array {
  const length = 3 * meta.imageSize ** 2;
  const x = new Float32Array(images.length * length);
  images.forEach(({ index, neighborPath }, i) => x.set(neighborNoise(seed, index, neighborPath, length), i * length));
  return x;
}

function toImages(values: Float32Array, meta: GeneratorMeta): Pixels[] {
  const { imageSize: size, valueRange } = meta;
  const length = 3 * size * size;
  const count = values.length / length;
  return Array.from({ length: count }, (_, i) => ({ size, rgba: toPixels(values.subarray(i * length, (i + 1) * length), size, valueRange) }));
}
