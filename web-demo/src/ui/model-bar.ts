/** The line that says which model is in use and what computes it, and lets the visitor change both. */
import { readable } from '../drawing.ts';
import type { BackendChoice, LoadedModel, Progress } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { byId, recall, remember } from './dom.ts';
import { bytes, count, device, millions } from './words.ts';

const CHOICES: readonly BackendChoice[] = ['auto', 'webgpu', 'wasm'];

export function rememberedBackend(): BackendChoice {
  return CHOICES.find((choice) => choice === recall('backend')) ?? 'auto';
}

export function startModelBar(models: Models, complain: (error: string) => void): void {
  const state = byId('model-state');
  const bar = byId<HTMLProgressElement>('model-progress');
  const backend = byId<HTMLSelectElement>('backend');
  backend.value = models.settings.backend;

  const shown = (): LoadedModel | undefined => {
    const { generator, classifier } = models.current;
    return document.body.dataset['view'] === 'classify' ? (classifier ?? generator) : (generator ?? classifier);
  };
  const settle = () => {
    const model = shown();
    bar.classList.add('idle');
    if (model) state.textContent = line(model);
  };

  models.on('progress', (event) => {
    if (!event) {
      settle();
      return;
    }
    bar.classList.remove('idle');
    bar.value = event.progress.done / Math.max(1, event.progress.total);
    const text = loading(event.name, event.progress);
    // Percentages in a live region would be read out one by one.
    if (state.dataset['what'] !== event.progress.what + event.name || event.progress.what === 'download') state.textContent = text;
    state.dataset['what'] = event.progress.what + event.name;
  });
  models.on('loaded', (model) => {
    settle();
    if (model.meta.kind === 'generator') {
      byId('tagline').textContent = `by a model of ${millions(model.parameters)} parameters. Nothing leaves this page.`;
    }
    document.body.dataset['backend'] = model.device.backend;
    document.body.dataset['threads'] = String(model.device.threads);
  });
  models.on('failed', ({ error }) => {
    if (!shown()) state.textContent = 'No model is loaded.';
    complain(error);
  });
  backend.addEventListener('change', () => {
    const choice = backend.value as BackendChoice;
    remember('backend', choice === 'auto' ? null : choice);
    state.textContent = 'Starting anew…';
    models.reconfigure({ ...models.settings, backend: choice }).catch(() => {});
  });
  new MutationObserver(settle).observe(document.body, { attributeFilter: ['data-view'] });
}

function loading(name: string, { what, done, total }: Progress): string {
  if (what === 'download') return `Loading ${name}: ${bytes(done)} of ${bytes(total)}`;
  return what === 'check' ? `Checking ${name}…` : `Starting ${name}…`;
}

function line(model: LoadedModel): string {
  const { meta } = model;
  const facts = [`${meta.imageSize} px`, `${count(meta.classes.length)} classes`, bytes(model.bytes), device(model.device)];
  return `${readable(model.name)} · ${facts.join(' · ')}`;
}
