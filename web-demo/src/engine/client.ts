/** The page's end of the engine: calls become messages, and messages become promises. */
import { Cancelled, UserError } from './errors.ts';
import type { CallName, Calls, FromWorker, ToWorker } from './protocol.ts';

interface Pending {
  tell(event: unknown): void;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** A call on its way. */
export interface Call<T> {
  result: Promise<T>;
  /** Takes effect before the network's next evaluation. */
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

  call<K extends CallName>(call: K, takes: Calls[K]['takes'], tell: (event: Calls[K]['tells']) => void = () => {}): Call<Calls[K]['returns']> {
    const id = ++this.last;
    const result = new Promise<Calls[K]['returns']>((resolve, reject) => {
      if (this.dead) {
        reject(this.dead);
        return;
      }
      this.pending.set(id, { tell: tell as (event: unknown) => void, resolve: resolve as (value: unknown) => void, reject });
      this.post({ id, call, takes } as ToWorker);
    });
    return { result, cancel: () => this.post({ cancel: id }) };
  }

  /** Ends the worker, which frees all of its memory. Calls on their way are cancelled. */
  close(): void {
    this.worker.terminate();
    this.fail(new Cancelled());
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
    if ('tell' in message) {
      call.tell(message.tell);
      return;
    }
    this.pending.delete(message.id);
    if ('returns' in message) call.resolve(message.returns);
    else if (message.kind === 'cancelled') call.reject(new Cancelled());
    else if (message.kind === 'user') call.reject(new UserError(message.error));
    else call.reject(new Error(message.error));
  }
}
