import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { type Options, download } from '../src/engine/download.ts';
import type { ListedModel, Progress } from '../src/engine/protocol.ts';
import type { ModelStore, Partial as Kept } from '../src/engine/store.ts';

const SIZE = 3_500_000;
const FILE = Uint8Array.from({ length: SIZE }, (_, i) => (i * 31 + (i >> 8)) & 255);
const OTHER = FILE.map((byte) => byte ^ 1);
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const MODEL: ListedModel = { name: 'cat', kind: 'generator', url: 'models/cat.onnx', bytes: SIZE, sha256: sha256(FILE) };

/** Compared as a whole: a difference of millions of numbers helps nobody. */
const expectFile = (bytes: Uint8Array) => expect(Buffer.compare(bytes, FILE)).toBe(0);

class Memory implements ModelStore {
  readonly models = new Map<string, Uint8Array>();
  readonly parts: Uint8Array[] = [];
  validator = '';
  full = false;

  async whole(hash: string) {
    return this.models.get(hash) ?? null;
  }
  async keep(hash: string, bytes: Uint8Array) {
    if (this.full) throw new Error('the quota has been exceeded');
    this.models.set(hash, bytes);
  }
  async drop(hash: string) {
    this.models.delete(hash);
  }
  async partial(): Promise<Kept | null> {
    return this.parts.length > 0 ? { validator: this.validator, parts: [...this.parts] } : null;
  }
  async append(_hash: string, validator: string, at: number, part: Uint8Array) {
    if (this.full) throw new Error('the quota has been exceeded');
    expect(at).toBe(this.parts.length);
    this.validator = validator;
    this.parts.push(part);
  }
  async dropPartial() {
    this.parts.length = 0;
  }
  get kept() {
    return this.parts.reduce((sum, part) => sum + part.length, 0);
  }
}

/** A server of one file, whose connections break after so many bytes. */
class Server {
  readonly requests: { range: string | null; condition: string | null; sent: number }[] = [];
  file = FILE;
  etag: string | null = '"one"';
  ranges = true;
  breaks: number[] = [];

  fetch = async (_url: string, { headers, signal }: RequestInit): Promise<Response> => {
    const asked = new Headers(headers);
    const range = asked.get('Range');
    const condition = asked.get('If-Range');
    const from = this.ranges && range && (condition === null || condition === this.etag) ? Number(/bytes=(\d+)-/.exec(range)![1]) : 0;
    const end = this.breaks.shift();
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
    const answer = new Headers(this.etag ? { ETag: this.etag } : {});
    if (from > 0) answer.set('Content-Range', `bytes ${from}-${this.file.length - 1}/${this.file.length}`);
    return new Response(body, { status: from > 0 ? 206 : 200, headers: answer });
  };
}

function options(server: Server, store: ModelStore | null, change: Partial<Options> = {}): Options & { seen: Progress[] } {
  const seen: Progress[] = [];
  return { store, fetch: server.fetch, tell: (progress) => void seen.push(progress), signal: new AbortController().signal, pause: async () => {}, seen, ...change };
}

test('a file is streamed, checked, kept, and not asked for again', async () => {
  const [server, store] = [new Server(), new Memory()];
  const how = options(server, store);
  const { bytes, notStored } = await download(MODEL, MODEL.url, how);
  expectFile(bytes);
  expect(notStored).toBeUndefined();
  expect(how.seen.length).toBeGreaterThan(20);
  expect(how.seen.at(-1)).toEqual({ what: 'download', done: SIZE, total: SIZE });
  expect(store.parts).toEqual([]);
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests).toHaveLength(1);
});

test('an interrupted download goes on where it was', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.breaks = [1_500_000, 800_000];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests.map(({ range }) => range !== null)).toEqual([false, true, true]);
  expect(server.requests.slice(1).every(({ condition }) => condition === '"one"')).toBe(true);
  expect(server.requests.reduce((sum, { sent }) => sum + sent, 0)).toBe(SIZE);
});

test('after a reload it goes on from what was kept', async () => {
  const store = new Memory();
  const first = new Server();
  first.breaks = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(first, store))).rejects.toThrow('cat: download: network error');
  expect(store.kept).toBeGreaterThanOrEqual(2_300_000);
  const second = new Server();
  expectFile((await download(MODEL, MODEL.url, options(second, store))).bytes);
  expect(second.requests).toEqual([{ range: `bytes=${SIZE - second.requests[0]!.sent}-`, condition: '"one"', sent: second.requests[0]!.sent }]);
  expect(second.requests[0]!.sent).toBeLessThan(1_300_000);
  expect(store.parts).toEqual([]);
});

test('a server that ignores ranges sends everything again', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.ranges = false;
  server.breaks = [1_500_000];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests[1]!.sent).toBe(SIZE);
});

test('another version on the server in the meantime is a new start', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.file = OTHER;
  server.etag = '"old"';
  server.breaks = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('network error');
  server.file = FILE;
  server.etag = '"new"';
  server.breaks = [];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
});

test('parts of another version without a validator are found out by the hash, and fetched once more', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.file = OTHER;
  server.etag = null;
  server.breaks = [2_300_000, 0, 0, 0, 0, 0];
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('network error');
  server.file = FILE;
  server.breaks = [];
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expect(server.requests.at(-1)!.sent).toBe(SIZE);
});

test('a wrong hash is an error, and nothing is kept', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.file = OTHER;
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow(`cat: sha256: expected ${MODEL.sha256}`);
  expect(store.models.size).toBe(0);
  expect(store.parts).toEqual([]);
  expect(server.requests).toHaveLength(1);
});

test('a longer file than was announced is an error', async () => {
  const [server, store] = [new Server(), new Memory()];
  server.file = Buffer.concat([FILE, Uint8Array.of(1, 2, 3)]);
  await expect(download(MODEL, MODEL.url, options(server, store))).rejects.toThrow('cat: bytes: expected 3500000');
  expect(store.models.size).toBe(0);
});

test('what was kept and is damaged is fetched again', async () => {
  const [server, store] = [new Server(), new Memory()];
  store.models.set(MODEL.sha256, OTHER);
  expectFile((await download(MODEL, MODEL.url, options(server, store))).bytes);
  expectFile(store.models.get(MODEL.sha256)!);
});

test('without room or without a store the model works all the same, and says why it is not kept', async () => {
  const full = new Memory();
  full.full = true;
  const unkept = await download(MODEL, MODEL.url, options(new Server(), full));
  expect(unkept.notStored).toBe('the quota has been exceeded');
  expectFile(unkept.bytes);
  const none = options(new Server(), null, { noStore: 'private window' });
  const unstored = await download(MODEL, MODEL.url, none);
  expect(unstored.notStored).toBe('private window');
  expectFile(unstored.bytes);
});

test('an answer that will not change is told at once', async () => {
  let asked = 0;
  const fetch = async () => {
    asked++;
    return new Response('', { status: 404, statusText: 'Not Found' });
  };
  await expect(download(MODEL, MODEL.url, options(new Server(), new Memory(), { fetch }))).rejects.toThrow('cat: models/cat.onnx: the server answered 404 Not Found');
  expect(asked).toBe(1);
  const busy = async () => {
    asked++;
    return new Response('', { status: 503 });
  };
  await expect(download(MODEL, MODEL.url, options(new Server(), new Memory(), { fetch: busy }))).rejects.toThrow('the server answered 503');
  expect(asked).toBe(6);
});

test('a download can be called off, and keeps what it has', async () => {
  const [server, store, abort] = [new Server(), new Memory(), new AbortController()];
  const how = options(server, store, { signal: abort.signal, tell: ({ done }) => void (done > 1_800_000 && abort.abort()) });
  await expect(download(MODEL, MODEL.url, how)).rejects.toThrow('cancelled');
  expect(store.kept).toBeGreaterThan(1_800_000);
  expect(server.requests).toHaveLength(1);
});
