/** What the page and the engine's worker say to each other. */
import type { ModelMeta, SamplerName } from './meta.ts';

export type BackendChoice = 'auto' | 'webgpu' | 'wasm';

/** One line of `models.json`. */
export interface ListedModel {
  name: string;
  kind: 'generator' | 'classifier';
  /** Relative to the page. */
  url: string;
  bytes: number;
  /** Of the file, in hexadecimal. */
  sha256: string;
  card?: string;
  report?: string;
}

/** Where a model's file comes from. */
export type ModelSource = { from: 'list'; model: ListedModel } | { from: 'file'; name: string; file: Blob };

/** What computes. */
export interface Device {
  backend: 'webgpu' | 'wasm';
  threads: number;
  /** Why it is not what one might expect; whole sentences. */
  notes: string[];
  /** Addresses of the runtime's files, for use without a network. */
  files: string[];
  /** Of WebGPU, what the browser says about the card. */
  adapter?: string;
}

/** A model that is ready. */
export interface LoadedModel {
  name: string;
  bytes: number;
  sha256: string;
  parameters: number;
  opset: number;
  meta: ModelMeta;
  device: Device;
  /** Why it was not kept for the next visit, if it was not. */
  notStored?: string;
}

/** A picture to be drawn: its noise and its class. */
export interface Draw {
  label: number;
  index: bigint;
  /** How its noise is reached from that of `index`; empty for that itself. */
  near: number[];
}

export interface DrawRequest {
  seed: bigint;
  draws: Draw[];
  steps: number;
  guidance: number;
  sampler: SamplerName;
}

/** Pixels as a canvas takes them: RGBA, square. */
export interface Pixels {
  size: number;
  rgba: Uint8ClampedArray<ArrayBuffer>;
}

export interface StepEvent {
  /** Where the pictures stand among the request's draws. */
  first: number;
  pictures: Pixels[];
  /** Steps of this batch. */
  done: number;
  steps: number;
  /** Of all batches, between 0 and 1. */
  overall: number;
  stepMs: number;
}

export interface DrawResult {
  totalMs: number;
  stepMs: number[];
  /** Time within the network, and how often it was evaluated. */
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

export type Verdict = { ok: true; width: number; height: number; candidates: Candidate[] } | { ok: false; reason: string };

export interface ClassifyEvent {
  at: number;
  verdict: Verdict;
}

export interface ClassifyResult {
  totalMs: number;
  networkMs: number;
}

/** One row to be measured: network evaluations of this batch, or whole pictures in so many steps. */
export type BenchmarkCase = { what: 'evaluation'; batch: number } | { what: 'picture'; batch: number; steps: number; sampler: SamplerName; guidance: number };

export interface BenchmarkEvent {
  done: number;
  of: number;
}

export interface BenchmarkResult {
  /** Milliseconds of each repetition. */
  times: number[];
  device: Device;
}

export interface Progress {
  what: 'download' | 'check' | 'start';
  done: number;
  total: number;
}

/** The worker's calls: what each takes, what it tells on its way, what it returns. */
export interface Calls {
  configure: { takes: { backend: BackendChoice; threads: number; storage: string }; tells: never; returns: { threads: number; webgpu: boolean } };
  load: { takes: { source: ModelSource; listed: string[] }; tells: Progress; returns: LoadedModel };
  draw: { takes: DrawRequest; tells: StepEvent; returns: DrawResult };
  thumbnails: { takes: Record<string, never>; tells: { label: number; picture: Pixels }; returns: null };
  classify: { takes: { sources: Source[] }; tells: ClassifyEvent; returns: ClassifyResult };
  benchmark: { takes: { what: BenchmarkCase; repeats: number }; tells: BenchmarkEvent; returns: BenchmarkResult };
}

export type CallName = keyof Calls;

export type ToWorker = { [K in CallName]: { id: number; call: K; takes: Calls[K]['takes'] } }[CallName] | { cancel: number };

export type FromWorker =
  | { id: number; tell: unknown }
  | { id: number; returns: unknown }
  | { id: number; error: string; kind: 'user' | 'cancelled' | 'defect' };
