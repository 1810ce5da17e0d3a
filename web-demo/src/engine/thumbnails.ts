/** Generates a small image of each class in the background and stores it for the next visit. */
import { Canceled } from './errors.ts';
import { generate } from './generator.ts';
import type { GeneratorMeta } from './meta.ts';
import type { Network } from './network.ts';
import type { Calls, Pixels } from './protocol.ts';
import type { Queue } from './queue.ts';
import type { Database } from './store.ts';

/** The maximum number of thumbnails; further classes show their initials. */
const MAX_THUMBNAILS = 64;
/** Chosen by eye from a few seeds. */
const SEED = 8n;
const STEPS = 10;

export interface ThumbnailJob {
  network: Network;
  meta: GeneratorMeta;
  sha256: string;
  db: Database | null;
  queue: Queue;
  emit(event: Calls['thumbnails']['event']): void;
  isCanceled(): Promise<boolean>;
}

export async function thumbnails({ network, meta, sha256, db, queue, emit, isCanceled }: ThumbnailJob): Promise<void> {
  const missing: number[] = [];
  for (let label = 0; label < Math.min(meta.classes.length, MAX_THUMBNAILS); label++) {
    const rgba = await db?.loadThumbnail(sha256, label).catch(() => null);
    if (rgba?.length === 4 * meta.imageSize ** 2) emit({ label, image: { size: meta.imageSize, rgba } });
    else missing.push(label);
  }
  while (missing.length > 0) {
    if (await isCanceled()) throw new Canceled();
    const label = missing[0]!;
    const image = await queue.add(() => generateThumbnail(network, meta, label, async () => (await isCanceled()) || queue.hasForegroundJob), true);
    // It stopped for a foreground job: add it again.
    if (!image) continue;
    missing.shift();
    emit({ label, image });
    await db?.saveThumbnail(sha256, label, image.rgba).catch(() => {});
  }
}

async function generateThumbnail(network: Network, meta: GeneratorMeta, label: number, isCanceled: () => Promise<boolean>): Promise<Pixels | null> {
  let image: Pixels | null = null;
  const request = { seed: SEED, images: [{ label, index: BigInt(label), neighborPath: [] }], steps: STEPS, guidance: meta.defaults.guidance, sampler: 'heun' as const };
  try {
    await generate(network, meta, request, isCanceled, (event) => {
      image = event.images[0] ?? null;
    });
    return image;
  } catch (error) {
    if (error instanceof Canceled) return null;
    throw error;
  }
}
