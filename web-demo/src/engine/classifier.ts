/** Classifies images one by one, so that a broken image does not affect the others. */
import { decode } from './decode.ts';
import { Canceled, UserError, describe } from './errors.ts';
import type { ClassifierMeta } from './meta.ts';
import type { Network } from './network.ts';
import { preprocess, toRgb } from './preprocess.ts';
import type { Candidate, ClassifyEvent, ClassifyOutcome, ClassifyResult, Source } from './protocol.ts';
import { allFinite } from './sampler.ts';

/** The probabilities of all classes, most probable first; equal ones keep their order. */
export function softmax(logits: Float32Array, classes: readonly string[]): Candidate[] {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  const candidates = exponentials.map((value, label) => ({ label, name: classes[label] ?? String(label), probability: value / sum }));
  return candidates.sort((a, b) => b.probability - a.probability);
}

export async function classify(
  network: Network,
  meta: ClassifierMeta,
  sources: readonly Source[],
  isCanceled: () => boolean | Promise<boolean>,
  emit: (event: ClassifyEvent) => void,
): Promise<ClassifyResult> {
  const start = performance.now();
  const before = network.ms;
  for (const [at, source] of sources.entries()) {
    if (await isCanceled()) throw new Canceled();
    emit({ at, outcome: await classifyImage(source, network, meta) });
  }
  return { totalMs: performance.now() - start, networkMs: network.ms - before };
}

async function classifyImage(source: Source, network: Network, meta: ClassifierMeta): Promise<ClassifyOutcome> {
  try {
    const image = 'file' in source ? await decode(source.file) : toRgb(source.pixels.rgba, source.pixels.size, source.pixels.size);
    const logits = await network.classify(preprocess(image, meta.preprocessing, meta.imageSize), 1);
    if (!allFinite(logits)) throw new UserError('the network returned NaN or infinity; its weights are damaged');
    return { ok: true, width: image.width, height: image.height, candidates: softmax(logits, meta.classes) };
  } catch (error) {
    // This includes running out of memory: the next image may be smaller.
    return { ok: false, reason: describe(error) };
  }
}
