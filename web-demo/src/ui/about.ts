/** The view that says what the models are, from their files, cards and reports. */
import { readable } from '../drawing.ts';
import { describe } from '../engine/errors.ts';
import type { ListedModel, LoadedModel } from '../engine/protocol.ts';
import { type Kind, type Models } from '../models.ts';
import { byId, el } from './dom.ts';
import { renderMarkdown } from './markdown.ts';
import { bytes, count, device } from './words.ts';

export function startAbout(models: Models): void {
  const box = byId('model-list');
  const show = () => {
    const loaded = Object.values(models.current);
    const own = loaded.filter((model) => !models.listed.some((listed) => listed.sha256 === model.sha256));
    const cards = [
      ...own.map((model) => card(model.name, model, null)),
      ...models.listed.map((listed) => card(listed.name, loaded.find((model) => model.sha256 === listed.sha256) ?? null, listed)),
    ];
    box.replaceChildren(...cards);
  };
  models.on('loaded', show);
  models.list().then(show, () => {});
  byId('forget').addEventListener('click', () => void forget());
}

function card(name: string, loaded: LoadedModel | null, listed: ListedModel | null): HTMLElement {
  const out = el('article', { class: 'model' }, el('h4', { text: readable(name) }), el('dl', { class: 'facts' }, ...facts(loaded, listed)));
  if (loaded) out.append(opened('What its file says', () => el('pre', { attributes: { tabindex: '0' } }, el('code', { text: JSON.stringify(loaded.meta.json, null, 2) }))));
  if (listed?.card) out.append(fetched('Model card', listed.card, (text) => el('div', { class: 'card prose' }, renderMarkdown(text))));
  if (listed?.report) out.append(fetched('Verification report', listed.report, (text) => report(name, JSON.parse(text) as Report)));
  return out;
}

function facts(loaded: LoadedModel | null, listed: ListedModel | null): HTMLElement[] {
  const kinds: Record<Kind, string> = { generator: 'draws pictures of a class', classifier: 'tells the class of a picture' };
  const kind = loaded?.meta.kind ?? listed?.kind;
  const list: [string, string][] = [];
  if (kind) list.push(['Kind', `${kind}, ${kinds[kind]}`]);
  list.push(['Size', bytes(loaded?.bytes ?? listed?.bytes ?? 0)]);
  if (loaded) {
    const { meta } = loaded;
    list.push(['Weights and constants', count(loaded.parameters)], ['Pictures', `${meta.imageSize} × ${meta.imageSize} px`]);
    list.push(['Classes', meta.classes.map(readable).join(', ')]);
    if (meta.kind === 'generator') {
      const { sampler, steps, guidance, guidanceInterval } = meta.defaults;
      list.push(['Advised', `${steps} ${sampler} steps, guidance ${guidance} for times from ${guidanceInterval.join(' to ')}; predicts ${meta.prediction === 'x' ? 'the clean picture' : 'velocities'}`]);
    }
    list.push(['Runs on', device(loaded.device)]);
    if (loaded.device.notes.length > 0) list.push(['Why', loaded.device.notes.join(' ')]);
    list.push(['Operator set', String(loaded.opset)]);
  } else list.push(['State', 'not loaded yet']);
  list.push(['SHA-256', loaded?.sha256 ?? listed?.sha256 ?? '']);
  return list.flatMap(([term, text]) => [el('dt', { text: term }), el('dd', { text })]);
}

/** Details whose contents are made when they are first opened. */
function opened(title: string, make: () => HTMLElement): HTMLElement {
  const out = el('details', {}, el('summary', { text: title }));
  out.addEventListener('toggle', () => out.append(make()), { once: true });
  return out;
}

function fetched(title: string, url: string, make: (text: string) => HTMLElement): HTMLElement {
  return opened(title, () => {
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
  ['trajectory_psnr', 'Whole drawing, PSNR dB'],
  ['same_class', 'Same class'],
  ['passed', 'Passed'],
];

function report(name: string, { passed, reference, tolerance, runtimes = [] }: Report): HTMLElement {
  const columns = COLUMNS.filter(([key]) => runtimes.some((run) => key in run));
  const cell = (value: unknown) => (typeof value === 'number' ? String(Number(value.toPrecision(3))) : value === true ? 'yes' : value === false ? 'no' : String(value ?? ''));
  const head = el('tr', {}, ...columns.map(([, text]) => el('th', { text, attributes: { scope: 'col' } })));
  const rows = runtimes.map((run) => el('tr', {}, ...columns.map(([key]) => el('td', { text: cell(run[key]) }))));
  const table = el('table', {}, el('caption', { text: `Compared with ${reference ?? 'the reference'}` }), el('thead', {}, head), el('tbody', {}, ...rows));
  const verdict = `${passed ? 'Passed' : 'Failed'}; tolerance ${tolerance?.absolute ?? '?'} absolute, ${tolerance?.relative ?? '?'} relative.`;
  return el('div', {}, el('p', { text: verdict }), el('div', { class: 'table', attributes: { tabindex: '0', role: 'region', 'aria-label': `Verification of ${name}` } }, table));
}

/** Deletes what this page keeps: databases, caches, settings, and the service worker. */
async function forget(): Promise<void> {
  const said = byId('forgotten');
  const here = new URL('.', location.href).pathname;
  try {
    indexedDB.deleteDatabase(`tiny-cats:${here}`);
    if ('caches' in window) for (const name of await caches.keys()) if (name.startsWith('tiny-cats-')) await caches.delete(name);
    const worker = await navigator.serviceWorker?.getRegistration();
    await worker?.unregister();
    for (const key of Object.keys(localStorage)) if (key.startsWith('tiny-cats:')) localStorage.removeItem(key);
    said.textContent = 'Forgotten. The page keeps things again when it is next opened.';
  } catch (error) {
    said.textContent = describe(error);
  }
}
