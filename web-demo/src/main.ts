/** The page: creates the views, keeps the URL up to date, and handles dropped files. */
import { describe } from './engine/errors.ts';
import { Models } from './models.ts';
import { type View, format, parse } from './state.ts';
import { startAbout } from './ui/about.ts';
import { Benchmark } from './ui/benchmark.ts';
import { Classify } from './ui/classify.ts';
import { byId } from './ui/dom.ts';
import { startDrops } from './ui/drops.ts';
import { Generate } from './ui/generate.ts';
import { savedBackend, startModelBar } from './ui/model-bar.ts';
import { clearError, showError, showHint } from './ui/notices.ts';
import { startOffline } from './ui/offline.ts';
import { Tabs } from './ui/tabs.ts';
import { startTheme } from './ui/theme.ts';

startTheme();
const models = new Models();
// Registered before the views, which may show new errors.
models.on('loaded', clearError);
models.configure({ backend: savedBackend(), threads: 0 });
startModelBar(models, showError);

let lastHash = '';
const tabs = new Tabs((view) => {
  setHash(hashOf(view), true);
  enter(view);
});
const classify = new Classify(models, showError);
const generate = new Generate(models, {
  setUrl: (generation, addToHistory) => {
    if (tabs.view === 'generate') setHash(format('generate', generation, generate.modelHash), addToHistory);
  },
  classify: (pixels, name) => {
    open('classify');
    classify.classifyPixels(pixels, name);
  },
  showError,
  clearError,
  isVisible: () => tabs.view === 'generate',
});
new Benchmark(models, (isPaused) => generate.setPaused(isPaused));
startAbout(models);
startDrops({
  view: () => tabs.view,
  images: (files) => {
    open('classify');
    classify.classifyFiles(files);
  },
  model: (file) => {
    models.useFile(file).then(
      ({ meta }) => open(meta.kind === 'generator' ? 'generate' : 'classify'),
      () => {},
    );
  },
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') generate.cancel();
});

function hashOf(view: View): string {
  return view === 'generate' && generate.isReady ? format(view, generate.generation(), generate.modelHash) : format(view, null, null);
}

function setHash(hash: string, addToHistory: boolean): void {
  if (hash === location.hash) return;
  lastHash = hash;
  if (addToHistory) history.pushState(null, '', hash);
  else history.replaceState(null, '', hash);
}

function open(view: View): void {
  if (tabs.view === view) return;
  tabs.show(view);
  setHash(hashOf(view), true);
  enter(view);
}

function enter(view: View): void {
  if (view === 'classify') models.ensureLoaded('classifier').catch(() => {});
  if (view !== 'generate') return;
  models.ensureLoaded('generator').catch(() => {});
  generate.enter();
}

/** Shows the view of the URL after it was opened, edited or restored from the history. */
function followUrl(): void {
  if (location.hash === lastHash) return;
  lastHash = location.hash;
  const { view, generation, model } = parse(location.hash);
  tabs.show(view);
  if (generation) generate.restore(generation);
  const current = models.current.generator?.sha256;
  if (view === 'generate' && model && current && !current.startsWith(model)) showOtherModelHint(model);
  enter(view);
}

function showOtherModelHint(hash: string): void {
  showHint(`This link was made with another model (${hash}…), so the images are different here.`);
}

const linkedModel = parse(location.hash).model;
models.on('loaded', ({ meta, sha256, notStored, device }) => {
  if (meta.kind !== 'generator') return;
  if (linkedModel && !sha256.startsWith(linkedModel)) showOtherModelHint(linkedModel);
  else if (notStored) showHint(`The model works, but it could not be stored for the next visit: ${notStored}.`);
  byId('model-bar').title = device.notes.join(' ');
});
addEventListener('hashchange', followUrl);
addEventListener('popstate', followUrl);
tabs.show('generate');
lastHash = '-';
followUrl();
// Preload a model for views that need none, unless the visitor saves data.
const { saveData } = (navigator as { connection?: { saveData?: boolean } }).connection ?? {};
if (!saveData) models.ensureLoaded('generator').catch((error: unknown) => console.warn(describe(error)));
startOffline(models);
