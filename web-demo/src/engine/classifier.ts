/** What pictures are taken for. Each is read, classified and told about before the next, so a broken one stops no other. */
import { decode } from './decode.ts';
import { Cancelled, UserError, describe } from './errors.ts';
import type { ClassifierMeta } from './meta.ts';
import type { Network } from './network.ts';
import { preprocess, rgbOf } from './preprocess.ts';
import type { Candidate, ClassifyEvent, ClassifyResult, Source, Verdict } from './protocol.ts';
import { allFinite } from './sampler.ts';

/** All classes by softmax, the most probable first; equal ones stay in order. */
export function softmax(logits: Float32Array, classes: readonly string[]): Candidate[] {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  const candidates = powers.map((power, label) => ({ label, name: classes[label] ?? String(label), probability: power / sum }));
  return candidates.sort((a, b) => b.probability - a.probability);
}

export async function classify(
  network: Network,
  meta: ClassifierMeta,
  sources: readonly Source[],
  cancelled: () => boolean | Promise<boolean>,
  tell: (event: ClassifyEvent) => void,
): Promise<ClassifyResult> {
  const start = performance.now();
  const before = network.ms;
  for (const [at, source] of sources.entries()) {
    if (await cancelled()) throw new Cancelled();
    tell({ at, verdict: await verdictOn(source, network, meta) });
  }
  return { totalMs: performance.now() - start, networkMs: network.ms - before };
}

async function verdictOn(source: Source, network: Network, meta: ClassifierMeta): Promise<Verdict> {
  try {
    const picture = 'file' in source ? await decode(source.file) : rgbOf(source.pixels.rgba, source.pixels.size, source.pixels.size);
    const logits = await network.classify(preprocess(picture, meta.preprocessing, meta.imageSize), 1);
    if (!allFinite(logits)) throw new UserError('the network returned something that is no finite number; its weights are damaged');
    return { ok: true, width: picture.width, height: picture.height, candidates: softmax(logits, meta.classes) };
  } catch (error) {
    // Also a lack of memory: the next picture may be smaller.
    return { ok: false, reason: describe(error) };
  }
}
