/** Measures the latency of one case: network evaluations or whole images. */
import { Canceled } from './errors.ts';
import { generate } from './generator.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import { noise } from './noise.ts';
import type { BenchmarkCase, BenchmarkEvent, BenchmarkResult } from './protocol.ts';

/** Repetitions that are not counted, because the first ones load and compile. */
const WARM_UP = { evaluation: 3, image: 1 };

export async function benchmark(
  network: Network,
  meta: GeneratorMeta,
  benchmarkCase: BenchmarkCase,
  repeats: number,
  isCanceled: () => Promise<boolean>,
  emit: (event: BenchmarkEvent) => void,
): Promise<BenchmarkResult> {
  const labels = Array.from({ length: benchmarkCase.batch }, (_, i) => i % meta.classes.length);
  const length = 3 * meta.imageSize ** 2;
  const x = noise(0n, 0n, length * benchmarkCase.batch);
  const measure =
    benchmarkCase.kind === 'evaluation'
      ? async () => {
          if (await isCanceled()) throw new Canceled();
          const start = performance.now();
          await network.predict(x, 0.5, labels);
          return performance.now() - start;
        }
      : async () => {
          const images = labels.map((label, i) => ({ label, index: BigInt(i), neighborPath: [] }));
          const { steps, guidance, sampler } = benchmarkCase;
          return (await generate(network, meta, { seed: 0n, images, steps, guidance, sampler }, isCanceled, () => {})).totalMs;
        };
  for (let i = 0; i < WARM_UP[benchmarkCase.kind]; i++) await measure();
  const times: number[] = [];
  for (let i = 0; i < repeats; i++) {
    times.push(await measure());
    emit({ done: i + 1, total: repeats });
  }
  return { times, device: network.device };
}
