/** The engine's worker, which runs all long computations, so that the page stays responsive. */
import { benchmark } from './benchmark.ts';
import { classify } from './classifier.ts';
import { MAX_BYTES, download, sha256Hex } from './download.ts';
import { Canceled, UserError, describe, fileError } from './errors.ts';
import { generate } from './generator.ts';
import { readMeta } from './meta.ts';
import { type Backend, Network, threadCount, webgpuAdapter } from './network.ts';
import { readOnnx } from './onnx-file.ts';
import type { CallName, Calls, FromWorker, LoadedModel, ToWorker } from './protocol.ts';
import { Queue, yieldToMessages } from './queue.ts';
import { Database } from './store.ts';
import { thumbnails } from './thumbnails.ts';

const scope = self as unknown as {
  postMessage(message: FromWorker): void;
  onmessage: ((event: MessageEvent<ToWorker>) => void) | null;
};

interface LoadedNetwork {
  network: Network;
  model: LoadedModel;
}

const queue = new Queue();
const loaded: { generator?: LoadedNetwork; classifier?: LoadedNetwork } = {};
const aborts = new Map<number, AbortController>();
let backend: Backend = { choice: 'auto', threads: 1, notes: [] };
let database: Promise<{ db: Database | null; error?: string }> = Promise.resolve({ db: null, error: 'not opened' });

/** The context of a call. */
interface Context<K extends CallName> {
  emit(event: Calls[K]['event']): void;
  signal: AbortSignal;
  /** Receives pending messages; true if the call was canceled. */
  isCanceled(): Promise<boolean>;
}

type Handlers = { [K in CallName]: (request: Calls[K]['request'], context: Context<K>) => Promise<Calls[K]['response']> };

const handlers: Handlers = {
  async configure({ backend: choice, threads, storage }) {
    const notes: string[] = [];
    if (globalThis.crossOriginIsolated !== true) {
      notes.push(
        globalThis.isSecureContext
          ? 'Only one thread: the server does not send the headers that threads need, Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.'
          : 'Only one thread: this page is not served securely, which threads need.',
      );
    }
    backend = { choice, threads: threadCount(threads), notes };
    database = Database.open(storage).then((db) => ({ db }), (error: unknown) => ({ db: null, error: describe(error) }));
    return { threads: backend.threads, webgpu: (await webgpuAdapter()) !== null };
  },

  async load({ source, listed }, { emit, signal }) {
    const { db, error: storeError } = await database;
    const { bytes, notStored } =
      source.from === 'list'
        ? await download(source.model, source.model.url, { store: db, ...(storeError ? { noStore: storeError } : {}), fetch: (url, init) => fetch(url, init), onProgress: emit, signal })
        : { bytes: await readFile(source.file, source.name), notStored: undefined };
    const name = source.from === 'list' ? source.model.name : source.name;
    const file = readOnnx(bytes, name);
    const meta = readMeta(file, name);
    const sha256 = source.from === 'list' ? source.model.sha256 : sha256Hex(bytes);
    if (db && listed.length > 0) void db.evict([...listed, sha256]).catch(() => {});
    emit({ phase: 'start', done: 0, total: 1 });
    return queue.add(async () => {
      if (signal.aborted) throw new Canceled();
      const network = await create(bytes, meta, name);
      await loaded[meta.kind]?.network.release();
      const model: LoadedModel = { name, bytes: bytes.length, sha256, parameters: file.parameters, opset: file.opset, meta, device: network.device };
      if (notStored !== undefined) model.notStored = notStored;
      loaded[meta.kind] = { network, model };
      return model;
    });
  },

  generate(request, { emit, isCanceled }) {
    return queue.add(async () => {
      const { network, meta } = generator();
      return generate(network, meta, request, isCanceled, emit);
    });
  },

  async thumbnails(_, { emit, isCanceled }) {
    const { network, meta, sha256 } = generator();
    const { db } = await database;
    await thumbnails({ network, meta, sha256, db, queue, emit, isCanceled });
    return null;
  },

  classify({ sources }, { emit, isCanceled }) {
    return queue.add(async () => {
      const current = loaded.classifier;
      if (current?.model.meta.kind !== 'classifier') throw new UserError('no classifier is loaded');
      return classify(current.network, current.model.meta, sources, isCanceled, emit);
    });
  },

  benchmark({ benchmarkCase, repeats }, { emit, isCanceled }) {
    return queue.add(async () => {
      const { network, meta } = generator();
      return benchmark(network, meta, benchmarkCase, repeats, isCanceled, emit);
    });
  },
};

function generator() {
  const current = loaded.generator;
  if (current?.model.meta.kind !== 'generator') throw new UserError('no generator is loaded');
  return { network: current.network, meta: current.model.meta, sha256: current.model.sha256 };
}

async function create(bytes: Uint8Array, meta: LoadedModel['meta'], name: string): Promise<Network> {
  try {
    return await Network.create(bytes, meta, backend);
  } catch (error) {
    throw fileError(name, 'graph', `the runtime rejected it: ${describe(error)}`);
  }
}

async function readFile(file: Blob, name: string): Promise<Uint8Array> {
  if (file.size > MAX_BYTES) throw fileError(name, 'size', `expected at most ${MAX_BYTES} bytes, found ${file.size}`);
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw fileError(name, 'file', describe(error));
  }
}

async function handleCall<K extends CallName>(id: number, call: K, request: Calls[K]['request']): Promise<void> {
  const abort = new AbortController();
  aborts.set(id, abort);
  try {
    const context: Context<K> = {
      emit: (event) => scope.postMessage({ id, event }),
      signal: abort.signal,
      isCanceled: async () => {
        await yieldToMessages();
        return abort.signal.aborted;
      },
    };
    scope.postMessage({ id, response: await handlers[call](request, context) });
  } catch (error) {
    const kind = error instanceof Canceled || abort.signal.aborted ? 'canceled' : error instanceof UserError ? 'user' : 'bug';
    scope.postMessage({ id, error: describe(error), kind });
  } finally {
    aborts.delete(id);
  }
}

scope.onmessage = ({ data }) => {
  if ('cancel' in data) aborts.get(data.cancel)?.abort();
  else void handleCall(data.id, data.call, data.request as never);
};
