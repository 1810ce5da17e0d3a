/** The view that classifies images. */
import { displayName } from '../generation.ts';
import type { Call } from '../engine/client.ts';
import { Canceled, describe } from '../engine/errors.ts';
import type { ClassifyOutcome, ClassifyResult, Pixels, Source } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { drawPixels } from './canvas.ts';
import { byId, el } from './dom.ts';
import { formatDuration, formatPercent, pluralize } from './formatting.ts';

/** The number of classes that are shown. */
const TOP_CLASSES = 3;
/** The maximum number of files at once. */
const MAX_FILES = 200;

export class Classify {
  private readonly status = byId('classify-status');
  private readonly list = byId('results');
  private readonly stop = byId<HTMLButtonElement>('stop-classify');
  private readonly clear = byId<HTMLButtonElement>('clear');
  private running: Call<ClassifyResult> | null = null;
  private readonly urls: string[] = [];

  constructor(
    private readonly models: Models,
    private readonly showError: (error: string) => void,
  ) {
    const input = byId<HTMLInputElement>('image-files');
    byId('choose-images').addEventListener('click', () => input.click());
    input.addEventListener('change', () => {
      this.classifyFiles([...(input.files ?? [])]);
      input.value = '';
    });
    this.stop.addEventListener('click', () => this.running?.cancel());
    this.clear.addEventListener('click', () => this.removeAll());
    models.on('loaded', ({ meta }) => {
      if (meta.kind !== 'classifier') return;
      byId('classify-lead').textContent = `Drop photographs anywhere, paste one, or choose files. They stay on this device. The model knows ${meta.classes.length} classes: ${meta.classes.map(displayName).join(', ')}.`;
    });
  }

  classifyFiles(files: File[]): void {
    if (files.length > MAX_FILES) this.showError(`expected at most ${MAX_FILES} images at once, found ${files.length}; only the first ${MAX_FILES} are classified`);
    void this.run(files.slice(0, MAX_FILES).map((file) => ({ name: file.name || 'pasted image', file })));
  }

  classifyPixels(pixels: Pixels, name: string): void {
    void this.run([{ name, pixels }]);
  }

  private removeAll(): void {
    this.running?.cancel();
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.list.replaceChildren();
    this.clear.disabled = true;
    this.status.textContent = '';
    byId('choose-images').focus();
  }

  private async run(sources: Source[]): Promise<void> {
    if (sources.length === 0) return;
    const rows = sources.map((source) => this.row(source));
    this.list.prepend(...rows);
    this.clear.disabled = false;
    this.status.textContent = `Classifying ${pluralize(sources.length, 'image')}…`;
    try {
      await this.models.ensureLoaded('classifier');
      const call = this.models.engine.call('classify', { sources }, ({ at, outcome }) => {
        const row = rows[at];
        if (row) showOutcome(row, outcome);
      });
      this.running = call;
      this.stop.disabled = false;
      const { totalMs, networkMs } = await call.result;
      const n = sources.length;
      this.status.textContent = `${pluralize(n, 'image')} in ${formatDuration(totalMs)}, ${formatDuration(networkMs / n)} in the network for each.`;
    } catch (error) {
      this.status.textContent = error instanceof Canceled ? 'Stopped.' : describe(error);
      for (const row of rows) if (row.classList.contains('waiting')) showOutcome(row, { ok: false, reason: error instanceof Canceled ? 'stopped' : 'not classified' });
    } finally {
      this.stop.disabled = true;
      this.running = null;
    }
  }

  private row(source: Source): HTMLElement {
    const box = el('div', { class: 'result-image' });
    if ('pixels' in source) {
      const canvas = el('canvas', { attributes: { 'aria-hidden': 'true' } });
      drawPixels(canvas, source.pixels, 128);
      box.append(canvas);
    } else {
      const url = URL.createObjectURL(source.file);
      this.urls.push(url);
      const image = el('img', { attributes: { alt: '', width: '128', height: '128' } });
      image.addEventListener('error', () => image.remove());
      image.src = url;
      box.append(image);
    }
    return el('li', { class: 'result waiting' }, box, el('div', { class: 'result-text' }, el('p', { class: 'result-name', text: source.name }), el('p', { class: 'help', text: 'Waiting…' })));
  }
}

function showOutcome(row: HTMLElement, outcome: ClassifyOutcome): void {
  row.classList.remove('waiting');
  const text = row.querySelector('.result-text')!;
  const name = text.firstElementChild!;
  if (!outcome.ok) {
    row.classList.add('failed');
    text.replaceChildren(name, el('p', { class: 'reason', text: outcome.reason }));
    return;
  }
  const top = outcome.candidates.slice(0, TOP_CLASSES).map(({ name, probability }) => {
    const bar = el('span', { class: 'bar-fill' });
    bar.style.inlineSize = `${100 * probability}%`;
    return el('li', {}, el('span', { class: 'candidate', text: displayName(name) }), el('span', { class: 'bar-track', attributes: { 'aria-hidden': 'true' } }, bar), el('span', { class: 'share', text: formatPercent(probability) }));
  });
  text.replaceChildren(name, el('ol', { class: 'candidates' }, ...top));
}
