/**
 * Downloads a model: streams and hashes it, resumes after an interruption or a reload, verifies the hash, and stores the file under it.
 * If the server does not support ranges or has another version, the download starts over.
 */
import { sha256 } from '@noble/hashes/sha2.js';
import { bytesToHex } from '@noble/hashes/utils.js';
import { Canceled, UserError, describe, fileError } from './errors.ts';
import type { ListedModel, Progress } from './protocol.ts';
import type { ModelStore } from './store.ts';

/** The maximum size of a model. */
export const MAX_BYTES = 1 << 30;
const PART_BYTES = 1 << 20;
const MAX_ATTEMPTS = 5;

export interface Download {
  bytes: Uint8Array;
  /** The reason if the file could not be stored for the next visit. */
  notStored?: string;
}

export interface Options {
  store: ModelStore | null;
  /** The reason why there is no store. */
  noStore?: string;
  fetch: (url: string, init: RequestInit) => Promise<Response>;
  onProgress(progress: Progress): void;
  signal: AbortSignal;
  /** Waits between attempts. */
  pause?: (attempt: number) => Promise<void>;
}

export const sha256Hex = (bytes: Uint8Array) => bytesToHex(sha256(bytes));

/** Returns the bytes of `model` from the store or, if they are not there, from `url`. */
export async function download(model: ListedModel, url: string, options: Options): Promise<Download> {
  if (!(model.bytes > 0 && model.bytes <= MAX_BYTES)) throw fileError(model.name, 'bytes', `expected 1 to ${MAX_BYTES}, found ${model.bytes}`);
  const stored = await ignoreErrors(() => options.store?.loadModel(model.sha256));
  if (stored) {
    options.onProgress({ phase: 'check', done: stored.length, total: model.bytes });
    if (sha256Hex(stored) === model.sha256) return { bytes: stored };
    await ignoreErrors(() => options.store?.deleteModel(model.sha256));
  }
  const transfer = new Transfer(model, url, options);
  const bytes = await transfer.run();
  let notStored = options.store ? transfer.notStored : options.noStore ?? 'there is no storage';
  if (options.store) {
    try {
      await options.store.saveModel(model.sha256, bytes);
      notStored = undefined;
    } catch (error) {
      notStored = describe(error);
    }
    await ignoreErrors(() => options.store?.deleteParts(model.sha256));
  }
  return notStored === undefined ? { bytes } : { bytes, notStored };
}

/** Treats failing storage like missing storage. */
async function ignoreErrors<T>(work: () => Promise<T> | undefined): Promise<T | undefined> {
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

  async run(): Promise<Uint8Array> {
    await this.loadSavedParts();
    const resumed = this.received > 0;
    await this.downloadRest();
    if (this.hasExpectedHash()) return this.bytes;
    await this.restart();
    if (resumed) {
      // The stored parts may belong to another version: start over once.
      await this.downloadRest();
      if (this.hasExpectedHash()) return this.bytes;
      await this.restart();
    }
    throw fileError(this.model.name, 'sha256', `expected ${this.model.sha256}, but the file from the server has another hash; it was not stored`);
  }

  private hasExpectedHash(): boolean {
    return bytesToHex(this.hash.clone().digest()) === this.model.sha256;
  }

  /** Continues with the parts that an earlier visit received. */
  private async loadSavedParts(): Promise<void> {
    const partial = await ignoreErrors(() => this.options.store?.loadParts(this.model.sha256));
    if (!partial) return;
    for (const part of partial.parts) {
      if (this.received + part.length > this.bytes.length) break;
      this.appendBytes(part);
      this.parts++;
    }
    this.saved = this.received;
    this.validator = partial.validator;
  }

  private appendBytes(chunk: Uint8Array): void {
    this.bytes.set(chunk, this.received);
    this.hash.update(chunk);
    this.received += chunk.length;
  }

  private async restart(): Promise<void> {
    this.received = this.parts = this.saved = 0;
    this.validator = '';
    this.hash = sha256.create();
    await ignoreErrors(() => this.options.store?.deleteParts(this.model.sha256));
  }

  /** Sends requests until the file is complete. Attempts that received bytes reset the count of failures. */
  private async downloadRest(): Promise<void> {
    let failures = 0;
    while (this.received < this.bytes.length) {
      const before = this.received;
      try {
        await this.request();
        if (this.received < this.bytes.length) throw new Error(`the connection closed after ${this.received} of ${this.bytes.length} bytes`);
      } catch (error) {
        if (this.options.signal.aborted) throw new Canceled();
        if (error instanceof UserError) throw error;
        failures = this.received > before ? 1 : failures + 1;
        if (failures >= MAX_ATTEMPTS) throw fileError(this.model.name, 'download', describe(error));
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
      // A retry would get the same response.
      if (response.status >= 400 && response.status < 500 && response.status !== 408 && response.status !== 429) throw fileError(this.model.name, this.model.url, message);
      throw new Error(message);
    }
    const isContinued = response.status === 206 && this.isContinuation(response);
    if (this.received > 0 && !isContinued) await this.restart();
    if (response.status === 206 && !isContinued) throw new Error('the server sent another range than requested');
    if (!isContinued) this.validator = validatorOf(response);
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
          throw fileError(this.model.name, 'bytes', `expected ${this.bytes.length}, but the server sent more`);
        }
        this.appendBytes(value);
        this.options.onProgress({ phase: 'download', done: this.received, total: this.bytes.length });
        await this.save(false);
      }
    } finally {
      // Also saves the bytes after the last whole part if the connection broke.
      await this.save(true);
      await reader.cancel().catch(() => {});
    }
  }

  private async save(isLast: boolean): Promise<void> {
    const { store } = this.options;
    const unsaved = this.received - this.saved;
    if (!store || this.notStored !== undefined || unsaved === 0 || this.received === this.bytes.length) return;
    if (unsaved < PART_BYTES && !isLast) return;
    try {
      await store.appendPart(this.model.sha256, this.validator, this.parts, this.bytes.slice(this.saved, this.received));
      this.parts++;
      this.saved = this.received;
    } catch (error) {
      this.notStored = describe(error);
    }
  }
}

/** The validator of this version for If-Range, which requires strong validators (RFC 9110, section 13.1.5). */
function validatorOf(response: Response): string {
  const etag = response.headers.get('ETag') ?? '';
  if (etag && !etag.startsWith('W/')) return etag;
  return etag ? '' : (response.headers.get('Last-Modified') ?? '');
}

const pause = (attempt: number) => new Promise<void>((resolve) => setTimeout(resolve, 300 * 2 ** attempt));
