/** The view with information about the models, from their files, cards and reports. */
import { displayName } from '../generation.ts';
import { describe } from '../engine/errors.ts';
import type { ListedModel, LoadedModel } from '../engine/protocol.ts';
import { type Kind, type Models } from '../models.ts';
import { byId, el } from './dom.ts';
import { renderMarkdown } from './markdown.ts';
import { formatBytes, formatCount, formatDevice } from './formatting.ts';

export function startAbout(models: Models): void {
  const box = byId('model-list');
  const show = () => {
    const loaded = Object.values(models.current);
    const ownModels = loaded.filter((model) => !models.listed.some((listed) => listed.sha256 === model.sha256));
    const cards = [
      ...ownModels.map((model) => card(model.name, model, null)),
      ...models.listed.map((listed) => card(listed.name, loaded.find((model) => model.sha256 === listed.sha256) ?? null, listed)),
    ];
    box.replaceChildren(...cards);
  };
  models.on('loaded', show);
  models.list().then(show, () => {});
  byId('forget').addEventListener('click', () => void deleteStoredData());
}

function card(name: string, loaded: LoadedModel | null, listed: ListedModel | null): HTMLElement {
  const out = el('article', { class: 'model' }, el('h4', { text: displayName(name) }), el('dl', { class: 'facts' }, ...facts(loaded, listed)));
  if (loaded) out.append(lazyDetails('Metadata in the file', () => el('pre', { attributes: { tabindex: '0' } }, el('code', { text: JSON.stringify(loaded.meta.json, null, 2) }))));
  if (listed?.card) out.append(fetchedDetails('Model card', listed.card, (text) => el('div', { class: 'card prose' }, renderMarkdown(text))));
  if (listed?.report) out.append(fetchedDetails('Verification report', listed.report, (text) => report(name, JSON.parse(text) as Report)));
  return out;
}

function facts(loaded: LoadedModel | null, listed: ListedModel | null): HTMLElement[] {
  const kinds: Record<Kind, string> = { generator: 'generates images of a class', classifier: 'classifies images' };
  const kind = loaded?.meta.kind ?? listed?.kind;
  const list: [string, string][] = [];
  if (kind) list.push(['Kind', `${kind}, ${kinds[kind]}`]);
  list.push(['Size', formatBytes(loaded?.bytes ?? listed?.bytes ?? 0)]);
  if (loaded) {
    const { meta } = loaded;
    list.push(['Weights and constants', formatCount(loaded.parameters)], ['Images', `${meta.imageSize} × ${meta.imageSize} px`]);
    list.push(['Classes', meta.classes.map(displayName).join(', ')]);
    if (meta.kind === 'generator') {
      const { sampler, steps, guidance, guidanceInterval } = meta.defaults;
      list.push(['Defaults', `${steps} ${sampler} steps, guidance ${guidance} for times from ${guidanceInterval.join(' to ')}; predicts ${meta.prediction === 'x' ? 'the clean image' : 'velocities'}`]);
    }
    list.push(['Runs on', formatDevice(loaded.device)]);
    if (loaded.device.notes.length > 0) list.push(['Notes', loaded.device.notes.join(' ')]);
    list.push(['Operator set', String(loaded.opset)]);
  } else list.push(['State', 'not loaded yet']);
  list.push(['SHA-256', loaded?.sha256 ?? listed?.sha256 ?? '']);
  return list.flatMap(([term, text]) => [el('dt', { text: term }), el('dd', { text })]);
}

/** A details element that creates its contents when it is first opened. */
function lazyDetails(title: string, make: () => HTMLElement): HTMLElement {
  const out = el('details', {}, el('summary', { text: title }));
  out.addEventListener('toggle', () => out.append(make()), { once: true });
  return out;
}

function fetchedDetails(title: string, url: string, make: (text: string) => HTMLElement): HTMLElement {
  return lazyDetails(title, () => {
    const box = el('div', { text: 'Loading…' });
    fetch(url)
      .then((response) => (response.ok ? response.text() : Promise.reject(new Error(`the server answered ${response.status}`))))
      .then((text) => box.replaceChildren(make(text)))
      .catch((error: unknown) => box.replaceChildren(el('p', { class: 'reason', text: describe(error) })));
    return box;
  });
}

interface Report {
  passed?: boolean;
  reference?: string;
  tolerance?: { absolute?: number; relative?: number };
  runtimes?: Record<string, unknown>[];
}

const COLUMNS: [string, string][] = [
  ['runtime', 'Runtime'],
  ['version', 'Version'],
  ['max_absolute_error', 'Largest error'],
  ['max_relative_error', 'Relative'],
  ['trajectory_psnr', 'Complete sampling, PSNR dB'],
  ['same_class', 'Same class'],
  ['passed', 'Passed'],
];

function report(name: string, { passed, reference, tolerance, runtimes = [] }: Report): HTMLElement {
  const columns = COLUMNS.filter(([key]) => runtimes.some((run) => key in run));
  const cell = (value: unknown) => (typeof value === 'number' ? String(Number(value.toPrecision(3))) : value === true ? 'yes' : value === false ? 'no' : String(value ?? ''));
  const head = el('tr', {}, ...columns.map(([, text]) => el('th', { text, attributes: { scope: 'col' } })));
  const rows = runtimes.map((run) => el('tr', {}, ...columns.map(([key]) => el('td', { text: cell(run[key]) }))));
  const table = el('table', {}, el('caption', { text: `Compared with ${reference ?? 'the reference'}` }), el('thead', {}, head), el('tbody', {}, ...rows));
  const summary = `${passed ? 'Passed' : 'Failed'}; tolerance ${tolerance?.absolute ?? '?'} absolute, ${tolerance?.relative ?? '?'} relative.`;
  return el('div', {}, el('p', { text: summary }), el('div', { class: 'table', attributes: { tabindex: '0', role: 'region', 'aria-label': `Verification of ${name}` } }, table));
}

/** Deletes all stored data of this page: databases, caches, settings, and the service worker. */
async function deleteStoredData(): Promise<void> {
  const status = byId('forget-status');
  const path = new URL('.', location.href).pathname;
  try {
    indexedDB.deleteDatabase(`tiny-cats:${path}`);
    if ('caches' in window) for (const name of await caches.keys()) if (name.startsWith('tiny-cats-')) await caches.delete(name);
    const worker = await navigator.serviceWorker?.getRegistration();
    await worker?.unregister();
    for (const key of Object.keys(localStorage)) if (key.startsWith('tiny-cats:')) localStorage.removeItem(key);
    status.textContent = 'Deleted. The page stores data again when it is opened next.';
  } catch (error) {
    status.textContent = describe(error);
  }
}
