/**
 * A model in a runtime: WebGPU where there is an adapter and its first run is sound, else WebAssembly. Each new session is run once, and
 * what it returns must have the expected shape and be finite, before anything is drawn with it.
 */
import type { InferenceSession, Tensor, TypedTensor } from 'onnxruntime-web';
import { UserError, describe } from './errors.ts';
import type { ModelMeta } from './meta.ts';
import type { BackendChoice, Device } from './protocol.ts';
import { allFinite } from './sampler.ts';

/** The part of the runtime that is used; both builds of it have it. */
interface Ort {
  InferenceSession: { create(bytes: Uint8Array, options: InferenceSession.SessionOptions): Promise<InferenceSession> };
  Tensor: new (type: 'float32' | 'int64', data: Float32Array | BigInt64Array, dims: number[]) => Tensor;
}

export interface Backend {
  choice: BackendChoice;
  threads: number;
  notes: string[];
}

const isolated = () => globalThis.crossOriginIsolated === true;

/** As many threads as are of use and allowed. More than the cores only wait; beyond eight such small matrices gain nothing. */
export function threadsFor(wanted: number): number {
  if (!isolated()) return 1;
  const cores = navigator.hardwareConcurrency || 1;
  return wanted > 0 ? Math.min(wanted, 64) : Math.min(cores, 8);
}

/** A graphics card, or what stands for one. */
export interface Adapter {
  /** The names by which the browser knows it. */
  name: string;
  /** The processor pretends to be a card, which is slower than to compute at once. */
  software: boolean;
}

/** What there is to compute with by WebGPU, or null. */
export async function webgpuAdapter(): Promise<Adapter | null> {
  try {
    type Found = { info?: Record<string, unknown>; isFallbackAdapter?: boolean } | null;
    const gpu = (navigator as { gpu?: { requestAdapter(): Promise<Found> } }).gpu;
    const adapter = await gpu?.requestAdapter();
    if (!adapter) return null;
    const { vendor, architecture, description, isFallbackAdapter } = adapter.info ?? {};
    const name = [description, vendor, architecture].filter(Boolean).join(', ') || 'unnamed adapter';
    const software = Boolean(isFallbackAdapter ?? adapter.isFallbackAdapter) || /swiftshader|llvmpipe|basic render/i.test(name);
    return { name, software };
  } catch {
    return null;
  }
}

export class Network {
  /** Time spent in the runtime, and how often. */
  ms = 0;
  runs = 0;

  private constructor(
    private readonly ort: Ort,
    private readonly session: InferenceSession,
    readonly meta: ModelMeta,
    readonly device: Device,
  ) {}

  /** Loads `bytes` into the backend that was chosen or, where that fails, the one that always works, with the reason among its notes. */
  static async create(bytes: Uint8Array, meta: ModelMeta, backend: Backend): Promise<Network> {
    const notes = [...backend.notes];
    if (backend.choice !== 'wasm') {
      const adapter = await webgpuAdapter();
      if (adapter?.software && backend.choice === 'auto') {
        notes.push(`WebGPU is not used: its adapter (${adapter.name}) is the processor, which is faster without it.`);
      } else if (adapter) {
        try {
          const { start, files } = await import('./ort-webgpu.ts');
          return await Network.start(start(), bytes, meta, { backend: 'webgpu', threads: 1, notes, files, adapter: adapter.name });
        } catch (error) {
          notes.push(`WebGPU is not used: ${describe(error)}.`);
        }
      } else if (backend.choice === 'webgpu') {
        notes.push('WebGPU is not used: this browser offers no adapter.');
      }
    }
    const { start, files } = await import('./ort-wasm.ts');
    return Network.start(start(backend.threads), bytes, meta, { backend: 'wasm', threads: backend.threads, notes, files });
  }

  private static async start(ort: Ort, bytes: Uint8Array, meta: ModelMeta, device: Device): Promise<Network> {
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: [device.backend],
      graphOptimizationLevel: 'all',
      enableMemPattern: true,
      enableCpuMemArena: true,
      // Threads that wait for work sleep: as fast on an idle machine, and on a busy one they do not take the processor from those that work.
      extra: { session: { intra_op: { allow_spinning: '0' } } },
    });
    const network = new Network(ort, session, meta, device);
    try {
      await network.check();
    } catch (error) {
      await network.release();
      throw error;
    }
    return network;
  }

  /** Runs the network once on numbers that are easy to make. */
  private async check(): Promise<void> {
    const { meta } = this;
    const values = new Float32Array(3 * meta.imageSize ** 2).map((_, i) => Math.sin(i));
    const out = meta.kind === 'generator' ? await this.predict(values, 0.5, [0]) : await this.classify(values, 1);
    const expected = meta.kind === 'generator' ? values.length : meta.classes.length;
    if (out.length !== expected) throw new UserError(`the network returned ${out.length} numbers, expected ${expected}`);
    if (!allFinite(out)) throw new UserError('the network returned something that is no finite number');
    this.ms = this.runs = 0;
  }

  /** What a generator predicts for pictures `x`, one after another, at time `t`. */
  predict(x: Float32Array, t: number, labels: readonly number[]): Promise<Float32Array> {
    const { Tensor } = this.ort;
    const { inputs, imageSize: size } = this.meta;
    const n = labels.length;
    return this.run({
      [inputs[0]!]: new Tensor('float32', x, [n, 3, size, size]),
      [inputs[1]!]: new Tensor('float32', new Float32Array(n).fill(t), [n]),
      [inputs[2]!]: new Tensor('int64', BigInt64Array.from(labels, BigInt), [n]),
    });
  }

  /** A classifier's logits for `n` normalised pictures, one after another. */
  classify(pictures: Float32Array, n: number): Promise<Float32Array> {
    const size = this.meta.imageSize;
    return this.run({ [this.meta.inputs[0]!]: new this.ort.Tensor('float32', pictures, [n, 3, size, size]) });
  }

  private async run(feeds: Record<string, Tensor>): Promise<Float32Array> {
    const start = performance.now();
    const results = await this.session.run(feeds, [this.meta.output]);
    const tensor = results[this.meta.output] as TypedTensor<'float32'>;
    const data = (await tensor.getData(true)) as Float32Array;
    for (const feed of Object.values(feeds)) feed.dispose();
    this.ms += performance.now() - start;
    this.runs++;
    return data;
  }

  async release(): Promise<void> {
    await this.session.release();
  }
}
