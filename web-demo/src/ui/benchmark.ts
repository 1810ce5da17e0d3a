/** The benchmark view. Each backend and number of threads gets its own engine, so that the measurements are independent. */
import type { Call, Engine } from '../engine/client.ts';
import { Canceled, describe } from '../engine/errors.ts';
import type { GeneratorMeta } from '../engine/meta.ts';
import type { BenchmarkCase, LoadedModel } from '../engine/protocol.ts';
import type { Models, Settings } from '../models.ts';
import { describeDevice } from './device.ts';
import { byId, el, save } from './dom.ts';
import { type Report, cells, markdown, row } from './statistics.ts';

const BATCHES = [1, 4];
const STEPS = [10, 20];
/** Whole images are slow, so they are repeated less often by this factor. */
const IMAGE_REPEATS_DIVISOR = 4;

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
    private readonly setOthersPaused: (isPaused: boolean) => void,
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
    fillCheckboxes('bench-backends', [['wasm', 'WASM', true], ['webgpu', hasAdapter ? 'WebGPU' : 'WebGPU (no adapter)', hasAdapter && !device['WebGPU adapter']!.endsWith('(emulated on the CPU)'), !hasAdapter]]);
    const cores = crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    const threads = [...new Set([1, 2, 4, 8, cores])].filter((n) => n <= Math.max(1, cores)).sort((a, b) => a - b);
    fillCheckboxes('bench-threads', threads.map((n) => [String(n), String(n), true]));
    fillCheckboxes('bench-batches', BATCHES.map((n) => [String(n), String(n), true]));
    fillCheckboxes('bench-steps', STEPS.map((n) => [String(n), String(n), n === 20]));
  }

  /** The settings of the selected engines. The number of threads does not apply to WebGPU. */
  private engineSettings(): Settings[] {
    return selectedValues('bench-backends').flatMap((backend): Settings[] => {
      if (backend === 'webgpu') return [{ backend, threads: 1 }];
      return selectedValues('bench-threads').map((threads) => ({ backend: 'wasm', threads: Number(threads) }));
    });
  }

  private async run(): Promise<void> {
    const settings = this.engineSettings();
    const batches = selectedValues('bench-batches').map(Number);
    const steps = selectedValues('bench-steps').map(Number);
    const repeats = Math.min(Math.max(Math.round(Number(byId<HTMLInputElement>('repeats').value)) || 20, 3), 200);
    if (settings.length === 0 || batches.length === 0) {
      this.status.textContent = 'Choose at least one backend, one number of threads and one number of images.';
      return;
    }
    this.stopped = false;
    this.setBusy(true);
    this.setOthersPaused(true);
    const body = byId('bench-table').querySelector('tbody')!;
    body.replaceChildren();
    byId('bench-table').hidden = false;
    const device = await describeDevice();
    try {
      await this.models.ensureLoaded('generator');
      const total = settings.length * batches.length * (1 + steps.length);
      let done = 0;
      for (const setting of settings) {
        this.throwIfStopped();
        this.engine = this.models.createEngine(setting);
        const source = this.models.source('generator')!;
        const load = this.models.loadCall(this.engine, source, () => {});
        this.call = load;
        const model = await load.result;
        if (model.meta.kind !== 'generator') return;
        this.report ??= { model: modelInfo(model), device, rows: [] };
        if (done === 0) this.report = { model: modelInfo(model), device, rows: [] };
        for (const benchmarkCase of cases(batches, steps, model.meta)) {
          this.throwIfStopped();
          const name = caseName(benchmarkCase);
          this.status.textContent = `${name}, ${benchmarkCase.batch} at once, on ${setting.backend}, ${setting.threads} thread(s)…`;
          const n = benchmarkCase.kind === 'image' ? Math.max(3, Math.round(repeats / IMAGE_REPEATS_DIVISOR)) : repeats;
          const call = this.engine.call('benchmark', { benchmarkCase, repeats: n }, (event) => {
            this.progress.value = (done + event.done / event.total) / total;
          });
          this.call = call;
          const { times, device: usedDevice } = await call.result;
          const result = row({ what: name, backend: usedDevice.backend, threads: usedDevice.threads, batch: benchmarkCase.batch, steps: benchmarkCase.kind === 'image' ? benchmarkCase.steps : null }, times);
          this.report.rows.push(result);
          body.append(el('tr', {}, ...cells(result).map((text, i) => el(i === 0 ? 'th' : 'td', { text, ...(i === 0 ? { attributes: { scope: 'row' } } : {}) }))));
          done++;
        }
        this.engine.close();
        this.engine = null;
      }
      this.status.textContent = `Done. Percentiles use the nearest rank; with few repetitions the 99th is the slowest.`;
    } catch (error) {
      this.status.textContent = error instanceof Canceled ? 'Stopped.' : describe(error);
    } finally {
      this.engine?.close();
      this.engine = null;
      this.setBusy(false);
      this.setOthersPaused(false);
    }
  }

  private throwIfStopped(): void {
    if (this.stopped) throw new Canceled();
  }

  private setBusy(isBusy: boolean): void {
    const { start, stop, md, json } = this.buttons;
    if (!isBusy && document.activeElement === stop) start.focus();
    start.disabled = isBusy;
    stop.disabled = !isBusy;
    md.disabled = json.disabled = isBusy || !this.report?.rows.length;
    this.progress.value = 0;
    this.progress.classList.toggle('idle', !isBusy);
  }
}

function cases(batches: number[], steps: number[], { defaults: { guidance, sampler } }: GeneratorMeta): BenchmarkCase[] {
  return batches.flatMap((batch): BenchmarkCase[] => [
    { kind: 'evaluation', batch },
    ...steps.map((steps) => ({ kind: 'image' as const, batch, steps, guidance, sampler })),
  ]);
}

const caseName = (benchmarkCase: BenchmarkCase) =>
  benchmarkCase.kind === 'evaluation' ? 'network evaluation' : `image, ${benchmarkCase.steps} ${benchmarkCase.sampler} steps, guidance ${benchmarkCase.guidance}`;
const modelInfo = ({ name, sha256, parameters }: LoadedModel) => ({ name, sha256, parameters });

type CheckboxSpec = [value: string, text: string, checked: boolean, disabled?: boolean];

function fillCheckboxes(id: string, list: CheckboxSpec[]): void {
  const boxes = list.map(([value, text, checked, disabled = false]) => {
    const input = el('input', { attributes: { type: 'checkbox', value } });
    input.checked = checked;
    input.disabled = disabled;
    return el('label', { class: 'check' }, input, ` ${text}`);
  });
  byId(id).replaceChildren(...boxes);
}

const selectedValues = (id: string) => [...byId(id).querySelectorAll<HTMLInputElement>('input:checked:not(:disabled)')].map((input) => input.value);
