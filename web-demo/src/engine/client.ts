/** The page's interface to the engine: turns calls into messages and replies into promises. */
import { Canceled, UserError } from './errors.ts';
import type { CallName, Calls, FromWorker, ToWorker } from './protocol.ts';

interface Pending {
  onEvent(event: unknown): void;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** A running call. */
export interface Call<T> {
  result: Promise<T>;
  /** Cancels the call before the next network evaluation. */
  cancel(): void;
}

export class Engine {
  private readonly worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module', name: 'tiny-cats-engine' });
  private readonly pending = new Map<number, Pending>();
  private last = 0;
  private dead: Error | null = null;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.fail(new Error(`the engine stopped: ${event.message || 'its script could not be loaded'}`));
    };
  }

  call<K extends CallName>(call: K, request: Calls[K]['request'], onEvent: (event: Calls[K]['event']) => void = () => {}): Call<Calls[K]['response']> {
    const id = ++this.last;
    const result = new Promise<Calls[K]['response']>((resolve, reject) => {
      if (this.dead) {
        reject(this.dead);
        return;
      }
      this.pending.set(id, { onEvent: onEvent as (event: unknown) => void, resolve: resolve as (value: unknown) => void, reject });
      this.post({ id, call, request } as ToWorker);
    });
    return { result, cancel: () => this.post({ cancel: id }) };
  }

  /** Terminates the worker, which frees its memory, and cancels running calls. */
  close(): void {
    this.worker.terminate();
    this.fail(new Canceled());
  }

  private post(message: ToWorker): void {
    if (!this.dead) this.worker.postMessage(message);
  }

  private fail(error: Error): void {
    this.dead = error;
    for (const { reject } of this.pending.values()) reject(error);
    this.pending.clear();
  }

  private receive(message: FromWorker): void {
    const call = this.pending.get(message.id);
    if (!call) return;
    if ('event' in message) {
      call.onEvent(message.event);
      return;
    }
    this.pending.delete(message.id);
    if ('response' in message) call.resolve(message.response);
    else if (message.kind === 'canceled') call.reject(new Canceled());
    else if (message.kind === 'user') call.reject(new UserError(message.error));
    else call.reject(new Error(message.error));
  }
}
