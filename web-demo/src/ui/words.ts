/** Numbers for reading. */

export const count = (n: number) => n.toLocaleString('en');

export function bytes(n: number): string {
  return n < 1e6 ? `${Math.round(n / 1000)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

export function duration(ms: number): string {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** 5.5 million, 33 million. */
export function millions(n: number): string {
  return n < 1e5 ? count(n) : `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} million`;
}

export const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

export const plural = (n: number, one: string, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

/** What computes, in a few words. */
export function device({ backend, threads, adapter }: { backend: string; threads: number; adapter?: string }): string {
  return backend === 'webgpu' ? `WebGPU${adapter ? ` (${adapter})` : ''}` : `WASM, ${plural(threads, 'thread')}`;
}
