/** The engine's worker: everything that takes time happens here, so that the page never freezes. */
import { benchmark } from './benchmark.ts';
import { classify } from './classifier.ts';
import { MOST_BYTES, download, hashOf } from './download.ts';
import { Cancelled, UserError, describe, fileError } from './errors.ts';
import { draw } from './generator.ts';
import { readMeta } from './meta.ts';
import { type Backend, Network, threadsFor, webgpuAdapter } from './network.ts';
import { readOnnx } from './onnx-file.ts';
import type { CallName, Calls, FromWorker, LoadedModel, ToWorker } from './protocol.ts';
import { Queue, breathe } from './queue.ts';
import { Database } from './store.ts';
import { thumbnails } from './thumbnails.ts';

const scope = self as unknown as {
  postMessage(message: FromWorker): void;
  onmessage: ((event: MessageEvent<ToWorker>) => void) | null;
};

interface Ready {
  network: Network;
  model: LoadedModel;
}

const queue = new Queue();
const ready: { generator?: Ready; classifier?: Ready } = {};
const aborts = new Map<number, AbortController>();
let backend: Backend = { choice: 'auto', threads: 1, notes: [] };
let database: Promise<{ db: Database | null; why?: string }> = Promise.resolve({ db: null, why: 'not opened' });

/** What a call may use besides what it takes. */
interface Context<K extends CallName> {
  tell(event: Calls[K]['tells']): void;
  signal: AbortSignal;
  /** Lets a message that cancels in, then says whether it came. */
  cancelled(): Promise<boolean>;
}

type Handlers = { [K in CallName]: (takes: Calls[K]['takes'], context: Context<K>) => Promise<Calls[K]['returns']> };

const handlers: Handlers = {
  async configure({ backend: choice, threads, storage }) {
    const notes: string[] = [];
    if (globalThis.crossOriginIsolated !== true) {
      notes.push(
        globalThis.isSecureContext
          ? 'One thread only: the server does not send the headers that allow more, Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.'
          : 'One thread only: this page is not served securely, and threads need that.',
      );
    }
    backend = { choice, threads: threadsFor(threads), notes };
    database = Database.open(storage).then((db) => ({ db }), (error: unknown) => ({ db: null, why: describe(error) }));
    return { threads: backend.threads, webgpu: (await webgpuAdapter()) !== null };
  },

  async load({ source, listed }, { tell, signal }) {
    const { db, why } = await database;
    const { bytes, notStored } =
      source.from === 'list'
        ? await download(source.model, source.model.url, { store: db, ...(why ? { noStore: why } : {}), fetch: (url, init) => fetch(url, init), tell, signal })
        : { bytes: await readFile(source.file, source.name), notStored: undefined };
    const name = source.from === 'list' ? source.model.name : source.name;
    const file = readOnnx(bytes, name);
    const meta = readMeta(file, name);
    const sha256 = source.from === 'list' ? source.model.sha256 : hashOf(bytes);
    if (db && listed.length > 0) void db.evict([...listed, sha256]).catch(() => {});
    tell({ what: 'start', done: 0, total: 1 });
    return queue.add(async () => {
      if (signal.aborted) throw new Cancelled();
      const network = await create(bytes, meta, name);
      await ready[meta.kind]?.network.release();
      const model: LoadedModel = { name, bytes: bytes.length, sha256, parameters: file.parameters, opset: file.opset, meta, device: network.device };
      if (notStored !== undefined) model.notStored = notStored;
      ready[meta.kind] = { network, model };
      return model;
    });
  },

  draw(request, { tell, cancelled }) {
    return queue.add(async () => {
      const { network, meta } = generator();
      return draw(network, meta, request, cancelled, tell);
    });
  },

  async thumbnails(_, { tell, cancelled }) {
    const { network, meta, sha256 } = generator();
    const { db } = await database;
    await thumbnails({ network, meta, sha256, db, queue, tell, cancelled });
    return null;
  },

  classify({ sources }, { tell, cancelled }) {
    return queue.add(async () => {
      const loaded = ready.classifier;
      if (loaded?.model.meta.kind !== 'classifier') throw new UserError('no classifier is loaded');
      return classify(loaded.network, loaded.model.meta, sources, cancelled, tell);
    });
  },

  benchmark({ what, repeats }, { tell, cancelled }) {
    return queue.add(async () => {
      const { network, meta } = generator();
      return benchmark(network, meta, what, repeats, cancelled, tell);
    });
  },
};

function generator() {
  const loaded = ready.generator;
  if (loaded?.model.meta.kind !== 'generator') throw new UserError('no generator is loaded');
  return { network: loaded.network, meta: loaded.model.meta, sha256: loaded.model.sha256 };
}

async function create(bytes: Uint8Array, meta: LoadedModel['meta'], name: string): Promise<Network> {
  try {
    return await Network.create(bytes, meta, backend);
  } catch (error) {
    throw fileError(name, 'graph', `the runtime refuses it: ${describe(error)}`);
  }
}

async function readFile(file: Blob, name: string): Promise<Uint8Array> {
  if (file.size > MOST_BYTES) throw fileError(name, 'size', `expected at most ${MOST_BYTES} bytes, found ${file.size}`);
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw fileError(name, 'file', describe(error));
  }
}

async function answer<K extends CallName>(id: number, call: K, takes: Calls[K]['takes']): Promise<void> {
  const abort = new AbortController();
  aborts.set(id, abort);
  try {
    const context: Context<K> = {
      tell: (event) => scope.postMessage({ id, tell: event }),
      signal: abort.signal,
      cancelled: async () => {
        await breathe();
        return abort.signal.aborted;
      },
    };
    scope.postMessage({ id, returns: await handlers[call](takes, context) });
  } catch (error) {
    const kind = error instanceof Cancelled || abort.signal.aborted ? 'cancelled' : error instanceof UserError ? 'user' : 'defect';
    scope.postMessage({ id, error: describe(error), kind });
  } finally {
    aborts.delete(id);
  }
}

scope.onmessage = ({ data }) => {
  if ('cancel' in data) aborts.get(data.cancel)?.abort();
  else void answer(data.id, data.call, data.takes as never);
};
