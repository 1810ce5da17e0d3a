/** The messages between the page and the engine's worker. */
import type { ModelMeta, SamplerName } from './meta.ts';

export type BackendChoice = 'auto' | 'webgpu' | 'wasm';

/** An entry of `models.json`. */
export interface ListedModel {
  name: string;
  kind: 'generator' | 'classifier';
  /** Relative to the page. */
  url: string;
  bytes: number;
  /** The hash of the file, in hexadecimal. */
  sha256: string;
  card?: string;
  report?: string;
}

/** The source of a model's file. */
export type ModelSource = { from: 'list'; model: ListedModel } | { from: 'file'; name: string; file: Blob };

/** The backend that runs a model. */
export interface Device {
  backend: 'webgpu' | 'wasm';
  threads: number;
  /** Reasons for the choice of the backend and the number of threads, as whole sentences. */
  notes: string[];
  /** URLs of the runtime's files, for use without a network. */
  files: string[];
  /** The browser's description of the WebGPU adapter. */
  adapter?: string;
}

/** A loaded model. */
export interface LoadedModel {
  name: string;
  bytes: number;
  sha256: string;
  parameters: number;
  opset: number;
  meta: ModelMeta;
  device: Device;
  /** The reason if the file could not be stored for the next visit. */
  notStored?: string;
}

/** The class and the noise of an image to generate. */
export interface ImageSpec {
  label: number;
  index: bigint;
  /** The path from the noise of `index` to a neighbor; empty for that noise itself. */
  neighborPath: number[];
}

export interface GenerateRequest {
  seed: bigint;
  images: ImageSpec[];
  steps: number;
  guidance: number;
  sampler: SamplerName;
}

/** A square RGBA image. */
export interface Pixels {
  size: number;
  rgba: Uint8ClampedArray<ArrayBuffer>;
}

export interface StepEvent {
  /** The position of the first image in the request. */
  first: number;
  images: Pixels[];
  /** Finished steps of this batch. */
  done: number;
  steps: number;
  /** Progress of all batches, from 0 to 1. */
  overall: number;
  stepMs: number;
}

export interface GenerateResult {
  totalMs: number;
  stepMs: number[];
  /** Milliseconds in the network, and the number of its evaluations. */
  networkMs: number;
  evaluations: number;
  device: Device;
}

export type Source = { name: string; file: Blob } | { name: string; pixels: Pixels };

export interface Candidate {
  label: number;
  name: string;
  probability: number;
}

/** The classes of an image, or the reason why it could not be classified. */
export type ClassifyOutcome = { ok: true; width: number; height: number; candidates: Candidate[] } | { ok: false; reason: string };

export interface ClassifyEvent {
  at: number;
  outcome: ClassifyOutcome;
}

export interface ClassifyResult {
  totalMs: number;
  networkMs: number;
}

/** One case of a benchmark: network evaluations, or whole images. */
export type BenchmarkCase = { kind: 'evaluation'; batch: number } | { kind: 'image'; batch: number; steps: number; sampler: SamplerName; guidance: number };

export interface BenchmarkEvent {
  done: number;
  total: number;
}

export interface BenchmarkResult {
  /** Milliseconds of each repetition. */
  times: number[];
  device: Device;
}

export interface Progress {
  phase: 'download' | 'check' | 'start';
  done: number;
  total: number;
}

/** The worker's calls, each with its request, the events while it runs, and its response. */
export interface Calls {
  configure: { request: { backend: BackendChoice; threads: number; storage: string }; event: never; response: { threads: number; webgpu: boolean } };
  load: { request: { source: ModelSource; listed: string[] }; event: Progress; response: LoadedModel };
  generate: { request: GenerateRequest; event: StepEvent; response: GenerateResult };
  thumbnails: { request: Record<string, never>; event: { label: number; image: Pixels }; response: null };
  classify: { request: { sources: Source[] }; event: ClassifyEvent; response: ClassifyResult };
  benchmark: { request: { benchmarkCase: BenchmarkCase; repeats: number }; event: BenchmarkEvent; response: BenchmarkResult };
}

export type CallName = keyof Calls;

export type ToWorker = { [K in CallName]: { id: number; call: K; request: Calls[K]['request'] } }[CallName] | { cancel: number };

export type FromWorker =
  | { id: number; event: unknown }
  | { id: number; response: unknown }
  | { id: number; error: string; kind: 'user' | 'canceled' | 'bug' };
