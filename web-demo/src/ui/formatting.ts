/** Formats numbers for display. */

export const formatCount = (n: number) => n.toLocaleString('en');

export function formatBytes(n: number): string {
  return n < 1e6 ? `${Math.round(n / 1000)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

export function formatDuration(ms: number): string {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** Formats a count as `5.5 million` or `33 million`. */
export function formatMillions(n: number): string {
  return n < 1e5 ? formatCount(n) : `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} million`;
}

export const formatPercent = (share: number) => `${(100 * share).toFixed(1)} %`;

export const pluralize = (n: number, singular: string, plural = `${singular}s`) => `${n} ${n === 1 ? singular : plural}`;

/** Describes the backend briefly. */
export function formatDevice({ backend, threads, adapter }: { backend: string; threads: number; adapter?: string }): string {
  return backend === 'webgpu' ? `WebGPU${adapter ? ` (${adapter})` : ''}` : `WASM, ${pluralize(threads, 'thread')}`;
}
