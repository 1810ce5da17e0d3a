import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type Options, download } from '../src/engine/download.ts';
import type { ListedModel, Progress } from '../src/engine/protocol.ts';
import type { ModelStore, PartialDownload } from '../src/engine/store.ts';

const SIZE = 3_500_000;
const FILE = Uint8Array.from({ length: SIZE }, (_, i) => (i * 31 + (i >> 8)) & 255);
const OTHER = FILE.map((byte) => byte ^ 1);
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const MODEL: ListedModel = { name: 'cat', kind: 'generator', url: 'models/cat.onnx', bytes: SIZE, sha256: sha256(FILE) };

/** Compares files without printing millions of differences. */
const expectFile = (bytes: Uint8Array) => expect(Buffer.compare(bytes, FILE)).toBe(0);

class MemoryStore implements ModelStore {
  readonly models = new Map<string, Uint8Array>();
  readonly parts: Uint8Array[] = [];
  validator = '';
  isFull = false;

  async loadModel(hash: string) {
    return this.models.get(hash) ?? null;
  }
  async saveModel(hash: string, bytes: Uint8Array) {
    if (this.isFull) throw new Error('the quota has been exceeded');
    this.models.set(hash, bytes);
  }
  async deleteModel(hash: string) {
    this.models.delete(hash);
  }
  async loadParts(): Promise<PartialDownload | null> {
    return this.parts.length > 0 ? { validator: this.validator, parts: [...this.parts] } : null;
  }
  async appendPart(_hash: string, validator: string, at: number, part: Uint8Array) {
    if (this.isFull) throw new Error('the quota has been exceeded');
    expect(at).toBe(this.parts.length);
    this.validator = validator;
    this.parts.push(part);
  }
  async deleteParts() {
    this.parts.length = 0;
  }
  get partBytes() {
    return this.parts.reduce((sum, part) => sum + part.length, 0);
  }
}

/** A server of one file whose connections break after given numbers of bytes. */
class Server {
  readonly requests: { range: string | null; condition: string | null; sent: number }[] = [];
  file = FILE;
  etag: string | null = '"one"';
  supportsRanges = true;
  breakPoints: number[] = [];

  fetch = async (_url: string, { headers, signal }: RequestInit): Promise<Response> => {
    const requestHeaders = new Headers(headers);
    const range = requestHeaders.get('Range');
    const condition = requestHeaders.get('If-Range');
    const from = this.supportsRanges && range && (condition === null || condition === this.etag) ? Number(/bytes=(\d+)-/.exec(range)![1]) : 0;
    const end = this.breakPoints.shift();
    const request = { range, condition, sent: 0 };
    this.requests.push(request);
    const rest = this.file.subarray(from);
    let at = 0;
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (signal?.aborted) controller.error(new Error('aborted'));
        else if (end !== undefined && at >= end) controller.error(new TypeError('network error'));
        else if (at >= rest.length) controller.close();
        else {
          const chunk = rest.subarray(at, Math.min(at + 70_000, rest.length));
          at += chunk.length;
          request.sent = at;
          controller.enqueue(chunk);
        }
      },
    });
    const responseHeaders = new Headers(this.etag ? { ETag: this.etag } : {});
    if (from > 0) responseHeaders.set('Content-Range', `bytes ${from}-${this.file.length - 1}/${this.file.length}`);
    return new Response(body, { status: from > 0 ? 206 : 200, headers: responseHeaders });
  };
}

function options(server: Server, store: ModelStore | null, change: Partial<Options> = {}): Options & { events: Progress[] } {
  const events: Progress[] = [];
  return { store, fetch: server.fetch, onProgress: (progress) => void events.push(progress), signal: new AbortController().signal, pause: async () => {}, events, ...change };
}

test('a file is streamed, verified, stored, and not requested again', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  const settings = options(server, store);
  const { bytes, notStored } = await download(MODEL, MODEL.url, settings);
  expectFile(bytes);
  expect(notStored).toBeUndefined();
  expect(settings.events.length).toBeGreaterThan(20);
  expect(settings.events.at(-1)).toEqual({ phase: 'download', done: SIZE, total: SIZE });
  expect(store.parts).toEqual([]);
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests).toHaveLength(1);
});

test('an interrupted download resumes', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.breakPoints = [1_500_000, 800_000];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests.map(({ range }) => range !== null)).toEqual([false, true, true]);
  expect(server.requests.slice(1).every(({ condition }) => condition === '"one"')).toBe(true);
  expect(server.requests.reduce((sum, { sent }) => sum + sent, 0)).toBe(SIZE);
});

test('after a reload the download resumes from the stored parts', async () => {
  const store = new MemoryStore();
  const first = new Server();
  first.breakPoints = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(first, store))).rejects.toThrow('cat: download: network error');
  expect(store.partBytes).toBeGreaterThanOrEqual(2_300_000);
  const second = new Server();
  expectFile((await download(MODEL, MODEL.url, options(second, store))).bytes);
  expect(second.requests).toEqual([{ range: `bytes=${SIZE - second.requests[0]!.sent}-`, condition: '"one"', sent: second.requests[0]!.sent }]);
  expect(second.requests[0]!.sent).toBeLessThan(1_300_000);
  expect(store.parts).toEqual([]);
});

test('without range support the download starts over', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.supportsRanges = false;
  server.breakPoints = [1_500_000];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests[1]!.sent).toBe(SIZE);
});

test('a new version on the server restarts the download', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.file = OTHER;
  server.etag = '"old"';
  server.breakPoints = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('network error');
  server.file = FILE;
  server.etag = '"new"';
  server.breakPoints = [];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
});

test('without a validator the hash detects parts of another version', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.file = OTHER;
  server.etag = null;
  server.breakPoints = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('network error');
  server.file = FILE;
  server.breakPoints = [];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests.at(-1)!.sent).toBe(SIZE);
});

test('a wrong hash is an error and nothing is stored', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.file = OTHER;
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow(`cat: sha256: expected ${MODEL.sha256}`);
  expect(store.models.size).toBe(0);
  expect(store.parts).toEqual([]);
  expect(server.requests).toHaveLength(1);
});

test('a file longer than announced is an error', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  server.file = Buffer.concat([FILE, Uint8Array.of(1, 2, 3)]);
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('cat: bytes: expected 3500000');
  expect(store.models.size).toBe(0);
});

test('a damaged stored file is downloaded again', async () => {
  const [server, store] = [new Server(), new MemoryStore()];
  store.models.set(MODEL.sha256, OTHER);
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expectFile(store.models.get(MODEL.sha256)!);
});

test('without storage the model works and the reason is reported', async () => {
  const full = new MemoryStore();
  full.isFull = true;
  const notStored = await download(MODEL, MODEL.url, options(new Server(), full));
  expect(notStored.notStored).toBe('the quota has been exceeded');
  expectFile(notStored.bytes);
  const noStore = options(new Server(), null, { noStore: 'private window' });
  const withoutStore = await download(MODEL, MODEL.url, noStore);
  expect(withoutStore.notStored).toBe('private window');
  expectFile(withoutStore.bytes);
});

test('permanent HTTP errors are not retried', async () => {
  let requests = 0;
  const fetch = async () => {
    requests++;
    return new Response('', { status: 404, statusText: 'Not Found' });
  };
  await expect(download(MODEL, MODEL.url, options(new Server(), new MemoryStore(), { fetch }))).rejects.toThrow('cat: models/cat.onnx: the server answered 404 Not Found');
  expect(requests).toBe(1);
  const busy = async () => {
    requests++;
    return new Response('', { status: 503 });
  };
  await expect(download(MODEL, MODEL.url, options(new Server(), new MemoryStore(), { fetch: busy }))).rejects.toThrow('the server answered 503');
  expect(requests).toBe(6);
});

test('a canceled download keeps its parts', async () => {
  const [server, store, abort] = [new Server(), new MemoryStore(), new AbortController()];
  const settings = options(server, store, { signal: abort.signal, onProgress: ({ done }) => void (done > 1_800_000 && abort.abort()) });
  await expect(download(MODEL, MODEL.url, settings)).rejects.toThrow('canceled');
  expect(store.partBytes).toBeGreaterThan(1_800_000);
  expect(server.requests).toHaveLength(1);
});
