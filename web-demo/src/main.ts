/** The page: puts its views together, keeps its address, and takes what is dropped onto it. */
import { describe } from './engine/errors.ts';
import { Models } from './models.ts';
import { type View, format, parse } from './state.ts';
import { startAbout } from './ui/about.ts';
import { Benchmark } from './ui/benchmark.ts';
import { Classify } from './ui/classify.ts';
import { byId } from './ui/dom.ts';
import { startDrops } from './ui/drops.ts';
import { Generate } from './ui/generate.ts';
import { rememberedBackend, startModelBar } from './ui/model-bar.ts';
import { complain, forgive, hint } from './ui/notices.ts';
import { startOffline } from './ui/offline.ts';
import { Tabs } from './ui/tabs.ts';
import { startTheme } from './ui/theme.ts';

startTheme();
const models = new Models();
// Before the views hear of it: they may have something new to complain of.
models.on('loaded', forgive);
models.configure({ backend: rememberedBackend(), threads: 0 });
startModelBar(models, complain);

let lastHash = '';
const tabs = new Tabs((view) => {
  setHash(addressOf(view), true);
  entered(view);
});
const classify = new Classify(models, complain);
const generate = new Generate(models, {
  address: (drawing, remember) => {
    if (tabs.view === 'generate') setHash(format('generate', drawing, generate.hash), remember);
  },
  classify: (pixels, name) => {
    open('classify');
    classify.drawn(pixels, name);
  },
  complain,
  forgive,
  visible: () => tabs.view === 'generate',
});
new Benchmark(models, (quiet) => generate.quiet(quiet));
startAbout(models);
startDrops({
  view: () => tabs.view,
  pictures: (files) => {
    open('classify');
    classify.files(files);
  },
  model: (file) => {
    models.use(file).then(
      ({ meta }) => open(meta.kind === 'generator' ? 'generate' : 'classify'),
      () => {},
    );
  },
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') generate.cancel();
});

function addressOf(view: View): string {
  return view === 'generate' && generate.ready ? format(view, generate.drawing(), generate.hash) : format(view, null, null);
}

function setHash(hash: string, remember: boolean): void {
  if (hash === location.hash) return;
  lastHash = hash;
  if (remember) history.pushState(null, '', hash);
  else history.replaceState(null, '', hash);
}

function open(view: View): void {
  if (tabs.view === view) return;
  tabs.show(view);
  setHash(addressOf(view), true);
  entered(view);
}

function entered(view: View): void {
  if (view === 'classify') models.need('classifier').catch(() => {});
  if (view !== 'generate') return;
  models.need('generator').catch(() => {});
  generate.entered();
}

/** The address was opened, changed by hand, or gone back to. */
function follow(): void {
  if (location.hash === lastHash) return;
  lastHash = location.hash;
  const { view, drawing, model } = parse(location.hash);
  tabs.show(view);
  if (drawing) generate.restore(drawing);
  const current = models.current.generator?.sha256;
  if (view === 'generate' && model && current && !current.startsWith(model)) otherModel(model);
  entered(view);
}

function otherModel(wanted: string): void {
  hint(`This address was made with another model (${wanted}…), so its pictures differ here.`);
}

const opened = parse(location.hash).model;
models.on('loaded', ({ meta, sha256, notStored, device }) => {
  if (meta.kind !== 'generator') return;
  if (opened && !sha256.startsWith(opened)) otherModel(opened);
  else if (notStored) hint(`The model works, but could not be kept for the next visit: ${notStored}.`);
  byId('model-bar').title = device.notes.join(' ');
});
addEventListener('hashchange', follow);
addEventListener('popstate', follow);
tabs.show('generate');
lastHash = '-';
follow();
// A view that needs no model still gets one ready, unless the visitor saves data.
const { saveData } = (navigator as { connection?: { saveData?: boolean } }).connection ?? {};
if (!saveData) models.need('generator').catch((error: unknown) => console.warn(describe(error)));
startOffline(models);
