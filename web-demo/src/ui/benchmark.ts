/** The view that measures. Each backend and number of threads gets an engine of its own, so that none profits from another. */
import type { Call, Engine } from '../engine/client.ts';
import { Cancelled, describe } from '../engine/errors.ts';
import type { GeneratorMeta } from '../engine/meta.ts';
import type { BenchmarkCase, LoadedModel } from '../engine/protocol.ts';
import type { Models, Settings } from '../models.ts';
import { describeDevice } from './device.ts';
import { byId, el, save } from './dom.ts';
import { type Report, cells, markdown, row } from './statistics.ts';

const BATCHES = [1, 4];
const STEPS = [10, 20];
/** Whole pictures take long; so few repetitions say enough about the median. */
const FEWER = 4;

export class Benchmark {
  private readonly status = byId('bench-status');
  private readonly progress = byId<HTMLProgressElement>('bench-progress');
  private readonly buttons = { start: byId<HTMLButtonElement>('bench-start'), stop: byId<HTMLButtonElement>('bench-stop'), md: byId<HTMLButtonElement>('bench-md'), json: byId<HTMLButtonElement>('bench-json') };
  private report: Report | null = null;
  private engine: Engine | null = null;
  private call: Call<unknown> | null = null;
  private stopped = false;

  constructor(
    private readonly models: Models,
    private readonly quiet: (quiet: boolean) => void,
  ) {
    void this.fill();
    byId('bench-form').addEventListener('submit', (event) => {
      event.preventDefault();
      void this.run();
    });
    this.buttons.stop.addEventListener('click', () => {
      this.stopped = true;
      this.call?.cancel();
    });
    this.buttons.md.addEventListener('click', () => this.save(markdown(this.report!), 'text/markdown', 'md'));
    this.buttons.json.addEventListener('click', () => this.save(`${JSON.stringify(this.report, null, 2)}\n`, 'application/json', 'json'));
    this.progress.classList.add('idle');
  }

  private save(text: string, type: string, ending: string): void {
    save(new Blob([text], { type }), `tiny-cats-benchmark.${ending}`);
  }

  private async fill(): Promise<void> {
    const device = await describeDevice();
    byId('device').replaceChildren(...Object.entries(device).flatMap(([term, text]) => [el('dt', { text: term }), el('dd', { text })]));
    const hasAdapter = device['WebGPU adapter'] !== 'none';
    checks('bench-backends', [['wasm', 'WASM', true], ['webgpu', hasAdapter ? 'WebGPU' : 'WebGPU (no adapter here)', hasAdapter && !device['WebGPU adapter']!.endsWith('(the processor)'), !hasAdapter]]);
    const cores = crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    const threads = [...new Set([1, 2, 4, 8, cores])].filter((n) => n <= Math.max(1, cores)).sort((a, b) => a - b);
    checks('bench-threads', threads.map((n) => [String(n), String(n), true]));
    checks('bench-batches', BATCHES.map((n) => [String(n), String(n), true]));
    checks('bench-steps', STEPS.map((n) => [String(n), String(n), n === 20]));
  }

  /** The engines that were asked for. Threads mean nothing to a graphics card. */
  private engines(): Settings[] {
    return chosen('bench-backends').flatMap((backend): Settings[] => {
      if (backend === 'webgpu') return [{ backend, threads: 1 }];
      return chosen('bench-threads').map((threads) => ({ backend: 'wasm', threads: Number(threads) }));
    });
  }

  private async run(): Promise<void> {
    const settings = this.engines();
    const batches = chosen('bench-batches').map(Number);
    const steps = chosen('bench-steps').map(Number);
    const repeats = Math.min(Math.max(Math.round(Number(byId<HTMLInputElement>('repeats').value)) || 20, 3), 200);
    if (settings.length === 0 || batches.length === 0) {
      this.status.textContent = 'Choose at least one backend, one number of threads and one number of pictures.';
      return;
    }
    this.stopped = false;
    this.busy(true);
    this.quiet(true);
    const body = byId('bench-table').querySelector('tbody')!;
    body.replaceChildren();
    byId('bench-table').hidden = false;
    const device = await describeDevice();
    try {
      await this.models.need('generator');
      const total = settings.length * batches.length * (1 + steps.length);
      let done = 0;
      for (const setting of settings) {
        this.check();
        this.engine = this.models.spare(setting);
        const source = this.models.source('generator')!;
        const loading = this.models.loadCall(this.engine, source, () => {});
        this.call = loading;
        const model = await loading.result;
        if (model.meta.kind !== 'generator') return;
        this.report ??= { model: about(model), device, rows: [] };
        if (done === 0) this.report = { model: about(model), device, rows: [] };
        for (const what of cases(batches, steps, model.meta)) {
          this.check();
          const name = nameOf(what);
          this.status.textContent = `${name}, ${what.batch} at once, on ${setting.backend}, ${setting.threads} thread(s)…`;
          const n = what.what === 'picture' ? Math.max(3, Math.round(repeats / FEWER)) : repeats;
          const measuring = this.engine.call('benchmark', { what, repeats: n }, (event) => {
            this.progress.value = (done + event.done / event.of) / total;
          });
          this.call = measuring;
          const { times, device: used } = await measuring.result;
          const measured = row({ what: name, backend: used.backend, threads: used.threads, batch: what.batch, steps: what.what === 'picture' ? what.steps : null }, times);
          this.report.rows.push(measured);
          body.append(el('tr', {}, ...cells(measured).map((text, i) => el(i === 0 ? 'th' : 'td', { text, ...(i === 0 ? { attributes: { scope: 'row' } } : {}) }))));
          done++;
        }
        this.engine.close();
        this.engine = null;
      }
      this.status.textContent = `Done. Percentiles are nearest ranks; with few repetitions the 99th is the slowest.`;
    } catch (error) {
      this.status.textContent = error instanceof Cancelled ? 'Stopped.' : describe(error);
    } finally {
      this.engine?.close();
      this.engine = null;
      this.busy(false);
      this.quiet(false);
    }
  }

  private check(): void {
    if (this.stopped) throw new Cancelled();
  }

  private busy(busy: boolean): void {
    const { start, stop, md, json } = this.buttons;
    if (!busy && document.activeElement === stop) start.focus();
    start.disabled = busy;
    stop.disabled = !busy;
    md.disabled = json.disabled = busy || !this.report?.rows.length;
    this.progress.value = 0;
    this.progress.classList.toggle('idle', !busy);
  }
}

function cases(batches: number[], steps: number[], { defaults: { guidance, sampler } }: GeneratorMeta): BenchmarkCase[] {
  return batches.flatMap((batch): BenchmarkCase[] => [
    { what: 'evaluation', batch },
    ...steps.map((steps) => ({ what: 'picture' as const, batch, steps, guidance, sampler })),
  ]);
}

const nameOf = (what: BenchmarkCase) => (what.what === 'evaluation' ? 'network evaluation' : `picture, ${what.steps} ${what.sampler} steps, guidance ${what.guidance}`);
const about = ({ name, sha256, parameters }: LoadedModel) => ({ name, sha256, parameters });

type Check = [value: string, text: string, checked: boolean, disabled?: boolean];

function checks(id: string, list: Check[]): void {
  const boxes = list.map(([value, text, checked, disabled = false]) => {
    const input = el('input', { attributes: { type: 'checkbox', value } });
    input.checked = checked;
    input.disabled = disabled;
    return el('label', { class: 'check' }, input, ` ${text}`);
  });
  byId(id).replaceChildren(...boxes);
}

const chosen = (id: string) => [...byId(id).querySelectorAll<HTMLInputElement>('input:checked:not(:disabled)')].map((input) => input.value);
