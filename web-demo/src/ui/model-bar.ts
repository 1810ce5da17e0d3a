/** The bar that shows the current model and backend, and lets the visitor change them. */
import { displayName } from '../generation.ts';
import type { BackendChoice, LoadedModel, Progress } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { byId, loadSetting, saveSetting } from './dom.ts';
import { formatBytes, formatCount, formatDevice, formatMillions } from './formatting.ts';

const CHOICES: readonly BackendChoice[] = ['auto', 'webgpu', 'wasm'];

export function savedBackend(): BackendChoice {
  return CHOICES.find((choice) => choice === loadSetting('backend')) ?? 'auto';
}

export function startModelBar(models: Models, showError: (error: string) => void): void {
  const state = byId('model-state');
  const bar = byId<HTMLProgressElement>('model-progress');
  const backend = byId<HTMLSelectElement>('backend');
  backend.value = models.settings.backend;

  const visibleModel = (): LoadedModel | undefined => {
    const { generator, classifier } = models.current;
    return document.body.dataset['view'] === 'classify' ? (classifier ?? generator) : (generator ?? classifier);
  };
  const showModel = () => {
    const model = visibleModel();
    bar.classList.add('idle');
    if (model) state.textContent = modelText(model);
  };

  models.on('progress', (event) => {
    if (!event) {
      showModel();
      return;
    }
    bar.classList.remove('idle');
    bar.value = event.progress.done / Math.max(1, event.progress.total);
    const text = progressText(event.name, event.progress);
    // Screen readers announce every change of a live region.
    if (state.dataset['phase'] !== event.progress.phase + event.name || event.progress.phase === 'download') state.textContent = text;
    state.dataset['phase'] = event.progress.phase + event.name;
  });
  models.on('loaded', (model) => {
    showModel();
    if (model.meta.kind === 'generator') {
      byId('tagline').textContent = `by a model of ${formatMillions(model.parameters)} parameters. Nothing leaves this page.`;
    }
    document.body.dataset['backend'] = model.device.backend;
    document.body.dataset['threads'] = String(model.device.threads);
  });
  models.on('failed', ({ error }) => {
    if (!visibleModel()) state.textContent = 'No model is loaded.';
    showError(error);
  });
  backend.addEventListener('change', () => {
    const choice = backend.value as BackendChoice;
    saveSetting('backend', choice === 'auto' ? null : choice);
    state.textContent = 'Restarting…';
    models.reconfigure({ ...models.settings, backend: choice }).catch(() => {});
  });
  new MutationObserver(showModel).observe(document.body, { attributeFilter: ['data-view'] });
}

function progressText(name: string, { phase, done, total }: Progress): string {
  if (phase === 'download') return `Loading ${name}: ${formatBytes(done)} of ${formatBytes(total)}`;
  return phase === 'check' ? `Checking ${name}…` : `Starting ${name}…`;
}

function modelText(model: LoadedModel): string {
  const { meta } = model;
  const facts = [`${meta.imageSize} px`, `${formatCount(meta.classes.length)} classes`, formatBytes(model.bytes), formatDevice(model.device)];
  return `${displayName(model.name)} · ${facts.join(' · ')}`;
}
