/** Quantiles of measurements, and the benchmark report. */

/** The quantile by nearest rank: the smallest value that at least a fraction `share` of the values does not exceed. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}

export interface Row {
  what: string;
  backend: string;
  threads: number;
  batch: number;
  steps: number | null;
  n: number;
  p50: number;
  p95: number;
  p99: number;
  times: number[];
}

export interface Report {
  model: { name: string; sha256: string; parameters: number };
  device: Record<string, string>;
  rows: Row[];
}

export function row(benchmark: Pick<Row, 'what' | 'backend' | 'threads' | 'batch' | 'steps'>, times: number[]): Row {
  const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => quantile(times, share)) as [number, number, number];
  return { ...benchmark, n: times.length, p50, p95, p99, times };
}

/** The cells of a row, as the table and the Markdown show them. */
export function cells({ what, backend, threads, batch, n, p50, p95, p99 }: Row): string[] {
  return [what, backend, String(threads), String(batch), String(n), ...[p50, p95, p99, p50 / batch].map((ms) => ms.toFixed(ms < 100 ? 1 : 0))];
}

export const HEADINGS = ['benchmark', 'backend', 'threads', 'batch', 'n', 'p50 ms', 'p95 ms', 'p99 ms', 'p50 ms per image'];

/** A line of a Markdown table, with escaped `|`. */
const line = (texts: readonly string[]) => `| ${texts.map((text) => text.replaceAll('|', '\\|').replaceAll('\n', ' ')).join(' | ')} |`;

export function markdown({ model, device, rows }: Report): string {
  return [
    '# Latency in the browser',
    '',
    `Model: ${model.name}, ${model.parameters} parameters, SHA-256 ${model.sha256}`,
    '',
    line(['device', '']),
    line(['---', '---']),
    ...Object.entries(device).map(line),
    '',
    line(HEADINGS),
    line(HEADINGS.map((_, i) => (i < 2 ? '---' : '---:'))),
    ...rows.map((row) => line(cells(row))),
    '',
  ].join('\n');
}
