/** A small picture of each class, drawn by the model itself when nothing else is to be done, and kept for the next visit. */
import { Cancelled } from './errors.ts';
import { draw } from './generator.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import type { Calls, Pixels } from './protocol.ts';
import type { Queue } from './queue.ts';
import type { Database } from './store.ts';

/** More classes than these keep their initials. */
const MOST = 64;
/** The seed was chosen by looking at what comes of a few. */
const SEED = 8n;
const STEPS = 10;

export interface Work {
  network: Network;
  meta: GeneratorMeta;
  sha256: string;
  db: Database | null;
  queue: Queue;
  tell(event: Calls['thumbnails']['tells']): void;
  cancelled(): Promise<boolean>;
}

export async function thumbnails({ network, meta, sha256, db, queue, tell, cancelled }: Work): Promise<void> {
  const missing: number[] = [];
  for (let label = 0; label < Math.min(meta.classes.length, MOST); label++) {
    const rgba = await db?.thumbnail(sha256, label).catch(() => null);
    if (rgba?.length === 4 * meta.imageSize ** 2) tell({ label, picture: { size: meta.imageSize, rgba } });
    else missing.push(label);
  }
  while (missing.length > 0) {
    if (await cancelled()) throw new Cancelled();
    const label = missing[0]!;
    const picture = await queue.add(() => one(network, meta, label, async () => (await cancelled()) || queue.urgent), true);
    // It gave way; the queue takes it up again when nothing else waits.
    if (!picture) continue;
    missing.shift();
    tell({ label, picture });
    await db?.keepThumbnail(sha256, label, picture.rgba).catch(() => {});
  }
}

async function one(network: Network, meta: GeneratorMeta, label: number, stop: () => Promise<boolean>): Promise<Pixels | null> {
  let picture: Pixels | null = null;
  const request = { seed: SEED, draws: [{ label, index: BigInt(label), near: [] }], steps: STEPS, guidance: meta.defaults.guidance, sampler: 'heun' as const };
  try {
    await draw(network, meta, request, stop, (event) => {
      picture = event.pictures[0] ?? null;
    });
    return picture;
  } catch (error) {
    if (error instanceof Cancelled) return null;
    throw error;
  }
}
