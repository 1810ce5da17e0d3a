/** The view that tells breeds. */
import { readable } from '../drawing.ts';
import type { Call } from '../engine/client.ts';
import { Cancelled, describe } from '../engine/errors.ts';
import type { ClassifyResult, Pixels, Source, Verdict } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { show } from './canvas.ts';
import { byId, el } from './dom.ts';
import { duration, percent, plural } from './words.ts';

const TOP = 3;
/** More files at once than these are a mistake. */
const MOST = 200;

export class Classify {
  private readonly status = byId('classify-status');
  private readonly list = byId('verdicts');
  private readonly stop = byId<HTMLButtonElement>('stop-classify');
  private readonly clear = byId<HTMLButtonElement>('clear');
  private running: Call<ClassifyResult> | null = null;
  private readonly urls: string[] = [];

  constructor(
    private readonly models: Models,
    private readonly complain: (error: string) => void,
  ) {
    const input = byId<HTMLInputElement>('picture-files');
    byId('choose-pictures').addEventListener('click', () => input.click());
    input.addEventListener('change', () => {
      this.files([...(input.files ?? [])]);
      input.value = '';
    });
    this.stop.addEventListener('click', () => this.running?.cancel());
    this.clear.addEventListener('click', () => this.empty());
    models.on('loaded', ({ meta }) => {
      if (meta.kind !== 'classifier') return;
      byId('classify-lead').textContent = `Drop photographs anywhere, paste one, or choose files. They stay on this device. The model tells ${meta.classes.length} classes apart: ${meta.classes.map(readable).join(', ')}.`;
    });
  }

  files(files: File[]): void {
    if (files.length > MOST) this.complain(`${files.length} pictures: expected at most ${MOST} at once; the first ${MOST} are taken`);
    void this.run(files.slice(0, MOST).map((file) => ({ name: file.name || 'pasted picture', file })));
  }

  drawn(pixels: Pixels, name: string): void {
    void this.run([{ name, pixels }]);
  }

  private empty(): void {
    this.running?.cancel();
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.list.replaceChildren();
    this.clear.disabled = true;
    this.status.textContent = '';
    byId('choose-pictures').focus();
  }

  private async run(sources: Source[]): Promise<void> {
    if (sources.length === 0) return;
    const rows = sources.map((source) => this.row(source));
    this.list.prepend(...rows);
    this.clear.disabled = false;
    this.status.textContent = `Looking at ${plural(sources.length, 'picture')}…`;
    try {
      await this.models.need('classifier');
      const call = this.models.engine.call('classify', { sources }, ({ at, verdict }) => {
        const row = rows[at];
        if (row) fill(row, verdict);
      });
      this.running = call;
      this.stop.disabled = false;
      const { totalMs, networkMs } = await call.result;
      const n = sources.length;
      this.status.textContent = `${plural(n, 'picture')} in ${duration(totalMs)}, ${duration(networkMs / n)} in the network for each.`;
    } catch (error) {
      this.status.textContent = error instanceof Cancelled ? 'Stopped.' : describe(error);
      for (const row of rows) if (row.classList.contains('waiting')) fill(row, { ok: false, reason: error instanceof Cancelled ? 'stopped' : 'not classified' });
    } finally {
      this.stop.disabled = true;
      this.running = null;
    }
  }

  private row(source: Source): HTMLElement {
    const picture = el('div', { class: 'verdict-picture' });
    if ('pixels' in source) {
      const canvas = el('canvas', { attributes: { 'aria-hidden': 'true' } });
      show(canvas, source.pixels, 128);
      picture.append(canvas);
    } else {
      const url = URL.createObjectURL(source.file);
      this.urls.push(url);
      const image = el('img', { attributes: { alt: '', width: '128', height: '128' } });
      image.addEventListener('error', () => image.remove());
      image.src = url;
      picture.append(image);
    }
    return el('li', { class: 'verdict waiting' }, picture, el('div', { class: 'verdict-text' }, el('p', { class: 'verdict-name', text: source.name }), el('p', { class: 'help', text: 'Waiting…' })));
  }
}

function fill(row: HTMLElement, verdict: Verdict): void {
  row.classList.remove('waiting');
  const text = row.querySelector('.verdict-text')!;
  const name = text.firstElementChild!;
  if (!verdict.ok) {
    row.classList.add('failed');
    text.replaceChildren(name, el('p', { class: 'reason', text: verdict.reason }));
    return;
  }
  const top = verdict.candidates.slice(0, TOP).map(({ name, probability }) => {
    const bar = el('span', { class: 'bar-fill' });
    bar.style.inlineSize = `${100 * probability}%`;
    return el('li', {}, el('span', { class: 'candidate', text: readable(name) }), el('span', { class: 'bar-track', attributes: { 'aria-hidden': 'true' } }, bar), el('span', { class: 'share', text: percent(probability) }));
  });
  text.replaceChildren(name, el('ol', { class: 'candidates' }, ...top));
}
