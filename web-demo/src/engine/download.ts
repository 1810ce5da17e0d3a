/**
 * Downloading a model: streamed, hashed while it streams, gone on with after an interruption or a reload, checked before it is used, and
 * kept under its hash. A server that knows no ranges, or has another version by now, costs a new start, never a wrong file.
 */
import { sha256 } from '@noble/hashes/sha2.js';
import { bytesToHex } from '@noble/hashes/utils.js';
import { Cancelled, UserError, describe, fileError } from './errors.ts';
import type { ListedModel, Progress } from './protocol.ts';
import type { ModelStore } from './store.ts';

/** Larger files are no models for a browser. */
export const MOST_BYTES = 1 << 30;
const PART_BYTES = 1 << 20;
const ATTEMPTS = 5;

export interface Downloaded {
  bytes: Uint8Array;
  /** Why it was not kept for the next visit, if it was not. */
  notStored?: string;
}

export interface Options {
  store: ModelStore | null;
  /** Why there is no store. */
  noStore?: string;
  fetch: (url: string, init: RequestInit) => Promise<Response>;
  tell(progress: Progress): void;
  signal: AbortSignal;
  /** Between attempts, milliseconds. */
  pause?: (attempt: number) => Promise<void>;
}

export const hashOf = (bytes: Uint8Array) => bytesToHex(sha256(bytes));

/** The bytes of `model`, whose file is at `url`: from the store if they are there, else from the server. */
export async function download(model: ListedModel, url: string, options: Options): Promise<Downloaded> {
  if (!(model.bytes > 0 && model.bytes <= MOST_BYTES)) throw fileError(model.name, 'bytes', `expected 1 to ${MOST_BYTES}, found ${model.bytes}`);
  const stored = await attempt(() => options.store?.whole(model.sha256));
  if (stored) {
    options.tell({ what: 'check', done: stored.length, total: model.bytes });
    if (hashOf(stored) === model.sha256) return { bytes: stored };
    await attempt(() => options.store?.drop(model.sha256));
  }
  const transfer = new Transfer(model, url, options);
  const bytes = await transfer.all();
  let notStored = options.store ? transfer.notStored : options.noStore ?? 'there is no storage';
  if (options.store) {
    try {
      await options.store.keep(model.sha256, bytes);
      notStored = undefined;
    } catch (error) {
      notStored = describe(error);
    }
    await attempt(() => options.store?.dropPartial(model.sha256));
  }
  return notStored === undefined ? { bytes } : { bytes, notStored };
}

/** Storage that fails is no storage. */
async function attempt<T>(work: () => Promise<T> | undefined): Promise<T | undefined> {
  try {
    return await work();
  } catch {
    return undefined;
  }
}

class Transfer {
  notStored: string | undefined;
  private readonly bytes: Uint8Array;
  private received = 0;
  private parts = 0;
  private saved = 0;
  private hash = sha256.create();
  private validator = '';

  constructor(
    private readonly model: ListedModel,
    private readonly url: string,
    private readonly options: Options,
  ) {
    this.bytes = new Uint8Array(model.bytes);
  }

  async all(): Promise<Uint8Array> {
    await this.recall();
    const resumed = this.received > 0;
    await this.complete();
    if (this.right()) return this.bytes;
    await this.restart();
    if (resumed) {
      // What was kept may have been of another version: once more, from the beginning.
      await this.complete();
      if (this.right()) return this.bytes;
      await this.restart();
    }
    throw fileError(this.model.name, 'sha256', `expected ${this.model.sha256}, but the server sent a file with another hash; nothing was kept`);
  }

  private right(): boolean {
    return bytesToHex(this.hash.clone().digest()) === this.model.sha256;
  }

  /** Takes up what an earlier visit received. */
  private async recall(): Promise<void> {
    const partial = await attempt(() => this.options.store?.partial(this.model.sha256));
    if (!partial) return;
    for (const part of partial.parts) {
      if (this.received + part.length > this.bytes.length) break;
      this.take(part);
      this.parts++;
    }
    this.saved = this.received;
    this.validator = partial.validator;
  }

  private take(chunk: Uint8Array): void {
    this.bytes.set(chunk, this.received);
    this.hash.update(chunk);
    this.received += chunk.length;
  }

  private async restart(): Promise<void> {
    this.received = this.parts = this.saved = 0;
    this.validator = '';
    this.hash = sha256.create();
    await attempt(() => this.options.store?.dropPartial(this.model.sha256));
  }

  /** Requests until everything is there. An attempt that brought something does not count as one. */
  private async complete(): Promise<void> {
    let failures = 0;
    while (this.received < this.bytes.length) {
      const before = this.received;
      try {
        await this.request();
        if (this.received < this.bytes.length) throw new Error(`the connection ended after ${this.received} of ${this.bytes.length} bytes`);
      } catch (error) {
        if (this.options.signal.aborted) throw new Cancelled();
        if (error instanceof UserError) throw error;
        failures = this.received > before ? 1 : failures + 1;
        if (failures >= ATTEMPTS) throw fileError(this.model.name, 'download', describe(error));
        await (this.options.pause ?? pause)(failures);
      }
    }
  }

  private async request(): Promise<void> {
    const headers: Record<string, string> = {};
    if (this.received > 0) {
      headers['Range'] = `bytes=${this.received}-`;
      if (this.validator) headers['If-Range'] = this.validator;
    }
    const response = await this.options.fetch(this.url, { headers, signal: this.options.signal, cache: 'no-cache' });
    if (response.status === 416) {
      await this.restart();
      return;
    }
    if (!response.ok || !response.body) {
      const message = `the server answered ${response.status} ${response.statusText}`.trim();
      // Such answers do not change by asking again.
      if (response.status >= 400 && response.status < 500 && response.status !== 408 && response.status !== 429) throw fileError(this.model.name, this.model.url, message);
      throw new Error(message);
    }
    const goesOn = response.status === 206 && this.isContinuation(response);
    if (this.received > 0 && !goesOn) await this.restart();
    if (response.status === 206 && !goesOn) throw new Error('the server sent another part than was asked for');
    if (!goesOn) this.validator = validatorOf(response);
    await this.read(response.body);
  }

  private isContinuation(response: Response): boolean {
    return new RegExp(`^bytes ${this.received}-\\d+/(\\d+|\\*)$`).test(response.headers.get('Content-Range') ?? '');
  }

  private async read(body: ReadableStream<Uint8Array>): Promise<void> {
    const reader = body.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (this.received + value.length > this.bytes.length) {
          await this.restart();
          throw fileError(this.model.name, 'bytes', `expected ${this.bytes.length}, but the server sends more`);
        }
        this.take(value);
        this.options.tell({ what: 'download', done: this.received, total: this.bytes.length });
        await this.save(false);
      }
    } finally {
      // Also what came since the last whole part, when the connection broke.
      await this.save(true);
      await reader.cancel().catch(() => {});
    }
  }

  private async save(rest: boolean): Promise<void> {
    const { store } = this.options;
    const waiting = this.received - this.saved;
    if (!store || this.notStored !== undefined || waiting === 0 || this.received === this.bytes.length) return;
    if (waiting < PART_BYTES && !rest) return;
    try {
      await store.append(this.model.sha256, this.validator, this.parts, this.bytes.slice(this.saved, this.received));
      this.parts++;
      this.saved = this.received;
    } catch (error) {
      this.notStored = describe(error);
    }
  }
}

/** What names this version of the file in If-Range, which takes strong validators only. */
function validatorOf(response: Response): string {
  const etag = response.headers.get('ETag') ?? '';
  if (etag && !etag.startsWith('W/')) return etag;
  return etag ? '' : (response.headers.get('Last-Modified') ?? '');
}

const pause = (attempt: number) => new Promise<void>((resolve) => setTimeout(resolve, 300 * 2 ** attempt));
