/** Measures one case at a time: how long the network takes, or whole pictures. */
import { Cancelled } from './errors.ts';
import { draw } from './generator.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import { noise } from './noise.ts';
import type { BenchmarkCase, BenchmarkEvent, BenchmarkResult } from './protocol.ts';

/** Runs before the first that counts, because the first ones load and compile. */
const WARM_UP = { evaluation: 3, picture: 1 };

export async function benchmark(
  network: Network,
  meta: GeneratorMeta,
  what: BenchmarkCase,
  repeats: number,
  cancelled: () => Promise<boolean>,
  tell: (event: BenchmarkEvent) => void,
): Promise<BenchmarkResult> {
  const labels = Array.from({ length: what.batch }, (_, i) => i % meta.classes.length);
  const length = 3 * meta.imageSize ** 2;
  const x = noise(0n, 0n, length * what.batch);
  const once =
    what.what === 'evaluation'
      ? async () => {
          if (await cancelled()) throw new Cancelled();
          const start = performance.now();
          await network.predict(x, 0.5, labels);
          return performance.now() - start;
        }
      : async () => {
          const draws = labels.map((label, i) => ({ label, index: BigInt(i), near: [] }));
          const { steps, guidance, sampler } = what;
          return (await draw(network, meta, { seed: 0n, draws, steps, guidance, sampler }, cancelled, () => {})).totalMs;
        };
  for (let i = 0; i < WARM_UP[what.what]; i++) await once();
  const times: number[] = [];
  for (let i = 0; i < repeats; i++) {
    times.push(await once());
    tell({ done: i + 1, of: repeats });
  }
  return { times, device: network.device };
}
