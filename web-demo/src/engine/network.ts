/**
 * A model in a runtime: WebGPU if there is an adapter and the first run succeeds, otherwise WebAssembly. Each new session runs once before
 * it is used, and its output must be finite and have the expected length.
 */
import type { InferenceSession, Tensor, TypedTensor } from 'onnxruntime-web';
import { UserError, describe } from './errors.ts';
import type { ModelMeta } from './meta.ts';
import type { BackendChoice, Device } from './protocol.ts';
import { allFinite } from './sampler.ts';

/** The part of the runtime that this page uses; both builds provide it. */
interface Ort {
  InferenceSession: { create(bytes: Uint8Array, options: InferenceSession.SessionOptions): Promise<InferenceSession> };
  Tensor: new (type: 'float32' | 'int64', data: Float32Array | BigInt64Array, dims: number[]) => Tensor;
}

export interface Backend {
  choice: BackendChoice;
  threads: number;
  notes: string[];
}

const isIsolated = () => globalThis.crossOriginIsolated === true;

/** The number of threads: all cores up to eight by default, because such small matrices gain nothing beyond that. */
export function threadCount(requested: number): number {
  if (!isIsolated()) return 1;
  const cores = navigator.hardwareConcurrency || 1;
  return requested > 0 ? Math.min(requested, 64) : Math.min(cores, 8);
}

/** A GPU, or its emulation in software. */
export interface Adapter {
  /** The browser's name for it. */
  name: string;
  /** True if the CPU emulates a GPU, which is slower than WebAssembly. */
  isSoftware: boolean;
}

/** The WebGPU adapter, or null if there is none. */
export async function webgpuAdapter(): Promise<Adapter | null> {
  try {
    type GpuAdapter = { info?: Record<string, unknown>; isFallbackAdapter?: boolean } | null;
    const gpu = (navigator as { gpu?: { requestAdapter(): Promise<GpuAdapter> } }).gpu;
    const adapter = await gpu?.requestAdapter();
    if (!adapter) return null;
    const { vendor, architecture, description, isFallbackAdapter } = adapter.info ?? {};
    const name = [description, vendor, architecture].filter(Boolean).join(', ') || 'unnamed adapter';
    const isSoftware = Boolean(isFallbackAdapter ?? adapter.isFallbackAdapter) || /swiftshader|llvmpipe|basic render/i.test(name);
    return { name, isSoftware };
  } catch {
    return null;
  }
}

export class Network {
  /** Total milliseconds and number of runs in the runtime. */
  ms = 0;
  runs = 0;

  private constructor(
    private readonly ort: Ort,
    private readonly session: InferenceSession,
    readonly meta: ModelMeta,
    readonly device: Device,
  ) {}

  /** Loads a model into the chosen backend. If that fails, falls back to WebAssembly and adds the reason to the notes. */
  static async create(bytes: Uint8Array, meta: ModelMeta, backend: Backend): Promise<Network> {
    const notes = [...backend.notes];
    if (backend.choice !== 'wasm') {
      const adapter = await webgpuAdapter();
      if (adapter?.isSoftware && backend.choice === 'auto') {
        notes.push(`WebGPU is not used: its adapter (${adapter.name}) is emulated on the CPU, which is faster without it.`);
      } else if (adapter) {
        try {
          const { start, files } = await import('./ort-webgpu.ts');
          return await Network.start(start(), bytes, meta, { backend: 'webgpu', threads: 1, notes, files, adapter: adapter.name });
        } catch (error) {
          notes.push(`WebGPU is not used: ${describe(error)}.`);
        }
      } else if (backend.choice === 'webgpu') {
        notes.push('WebGPU is not used: this browser has no adapter.');
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
      // Idle threads sleep instead of spinning: as fast on an idle machine, and faster on a busy one.
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

  /** Runs the network once on synthetic input and checks the output. */
  private async check(): Promise<void> {
    const { meta } = this;
    const values = new Float32Array(3 * meta.imageSize ** 2).map((_, i) => Math.sin(i));
    const output = meta.kind === 'generator' ? await this.predict(values, 0.5, [0]) : await this.classify(values, 1);
    const expected = meta.kind === 'generator' ? values.length : meta.classes.length;
    if (output.length !== expected) throw new UserError(`expected ${expected} output values, found ${output.length}`);
    if (!allFinite(output)) throw new UserError('the network returned NaN or infinity');
    this.ms = this.runs = 0;
  }

  /** The prediction of a generator for the noisy images `x`, `[n, 3, size, size]`, at time `t`. */
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

  /** The logits of a classifier for `n` normalized images, `[n, 3, size, size]`. */
  classify(images: Float32Array, n: number): Promise<Float32Array> {
    const size = this.meta.imageSize;
    return this.run({ [this.meta.inputs[0]!]: new this.ort.Tensor('float32', images, [n, 3, size, size]) });
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
