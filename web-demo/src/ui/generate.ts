/** The view that generates images. */
import { displayName, fileName, findLabel, imageSpecs, singleImage, variations, withDefaults } from '../generation.ts';
import type { Call } from '../engine/client.ts';
import { Canceled, describe } from '../engine/errors.ts';
import type { GeneratorMeta } from '../engine/meta.ts';
import type { GenerateResult, ImageSpec, LoadedModel, Pixels } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { ALL, type Generation, format } from '../state.ts';
import { Breeds } from './breeds.ts';
import { toPng } from './canvas.ts';
import { Controls } from './controls.ts';
import { byId, copyText, save } from './dom.ts';
import { formatDevice, formatDuration, pluralize } from './formatting.ts';
import { ImageCard } from './image-card.ts';

/** The number of images that "More like this" generates. */
const VARIATIONS = 9;

interface Page {
  /** Sets the page's URL to the settings, and optionally adds an entry to the history. */
  setUrl(generation: Generation, addToHistory: boolean): void;
  classify(pixels: Pixels, name: string): void;
  showError(error: string): void;
  /** True if this view is visible. */
  isVisible(): boolean;
  clearError(): void;
}

export class Generate {
  private readonly breeds = new Breeds(() => this.onEdit());
  private readonly controls = new Controls(() => this.onEdit());
  private readonly status = byId('generate-status');
  private readonly progress = byId<HTMLProgressElement>('generate-progress');
  private readonly stop = byId<HTMLButtonElement>('stop');
  private model: LoadedModel | null = null;
  private linked: Partial<Generation> | null = null;
  private running: Call<GenerateResult> | null = null;
  private thumbnails: Call<null> | null = null;
  private pending: Generation | null = null;
  private isPaused = false;
  /** The neighborhood of the current images; reset when a control changes. */
  private neighbors: Pick<Generation, 'neighborPath' | 'neighborhood'> = { neighborPath: [], neighborhood: false };

  constructor(
    private readonly models: Models,
    private readonly page: Page,
  ) {
    byId('controls').addEventListener('submit', (event) => {
      event.preventDefault();
      void this.generate(this.generation(), true);
    });
    byId('dice').addEventListener('click', () => {
      this.controls.seed = randomSeed();
      this.onEdit();
    });
    byId('surprise').addEventListener('click', () => this.surprise());
    this.stop.addEventListener('click', () => this.running?.cancel());
    models.on('loaded', (model) => {
      if (model.meta.kind === 'generator') this.setModel(model, model.meta);
    });
  }

  private setModel(model: LoadedModel, meta: GeneratorMeta): void {
    const previous = this.model;
    this.model = model;
    if (previous?.sha256 !== model.sha256) this.breeds.fill(meta.classes);
    const generation = withDefaults(this.initialGeneration(previous), meta);
    this.setControls(generation);
    this.page.setUrl(generation, false);
    this.pending = generation;
    this.enter();
  }

  /** Starts a pending generation when the view becomes visible. */
  enter(): void {
    if (!this.pending || !this.page.isVisible()) return;
    const generation = this.pending;
    this.pending = null;
    void this.generate(generation, false).then(() => this.generateThumbnails());
  }

  /** The settings for a new model: first those of the URL, later the current ones, with another model's defaults. */
  private initialGeneration(previous: LoadedModel | null): Partial<Generation> {
    if (!previous) return this.linked ?? { seed: randomSeed(), count: 4 };
    const generation = this.generation();
    if (previous.sha256 === this.model?.sha256) return generation;
    const { breed, seed, index, count } = generation;
    return { breed, seed, index, count };
  }

  /** Generates the images of the URL now, or when a model is loaded. */
  restore(settings: Partial<Generation>): void {
    this.linked = settings;
    if (this.model?.meta.kind !== 'generator') return;
    this.pending = null;
    const generation = withDefaults(settings, this.model.meta);
    this.setControls(generation);
    void this.generate(generation, false);
  }

  /** The settings of the controls. */
  generation(): Generation {
    return { breed: this.breeds.value, ...this.controls.read(), ...this.neighbors };
  }

  get modelHash(): string | null {
    return this.model?.sha256 ?? null;
  }

  get isReady(): boolean {
    return this.model !== null;
  }

  private setControls(generation: Generation): void {
    const classes = this.model?.meta.classes ?? [];
    const label = findLabel(generation.breed, classes);
    this.breeds.value = label === null ? ALL : classes[label]!;
    this.controls.write(generation);
    this.neighbors = { neighborPath: generation.neighborPath, neighborhood: generation.neighborhood };
  }

  private onEdit(): void {
    // The neighbors belong to the previous settings.
    this.neighbors = { neighborPath: [], neighborhood: false };
    if (this.model) this.page.setUrl(this.generation(), false);
  }

  private surprise(): void {
    const classes = this.model?.meta.classes ?? [];
    this.breeds.value = classes[Math.floor(Math.random() * classes.length)] ?? ALL;
    this.controls.seed = randomSeed();
    this.onEdit();
    void this.generate(this.generation(), true);
  }

  private async generate(generation: Generation, addToHistory: boolean): Promise<void> {
    const { model } = this;
    if (model?.meta.kind !== 'generator') {
      this.status.textContent = 'The model is not ready yet.';
      return;
    }
    const { classes } = model.meta;
    const specs = imageSpecs(generation, classes);
    if (!specs) {
      this.page.showError(`breed: ${model.name} has no class ${displayName(generation.breed)}`);
      return;
    }
    this.running?.cancel();
    this.page.clearError();
    this.page.setUrl(generation, addToHistory);
    const images = specs.map((spec, i) => this.createCard(generation, spec, i, classes));
    const list = byId('images');
    list.classList.toggle('one', images.length === 1);
    list.classList.toggle('two', images.length === 2 || images.length === 4);
    list.replaceChildren(...images.map((image) => image.element));
    this.setBusy(true);
    this.status.textContent = `Generating ${pluralize(specs.length, 'cat')}…`;
    const { seed, steps, guidance, sampler } = generation;
    const call = this.models.engine.call('generate', { seed, images: specs, steps, guidance, sampler }, (event) => {
      event.images.forEach((pixels, i) => images[event.first + i]?.show(pixels, event.done / event.steps));
      if (this.running === call) this.progress.value = event.overall;
    });
    this.running = call;
    try {
      const result = await call.result;
      if (this.running === call) this.status.textContent = summary(result, specs.length, generation);
    } catch (error) {
      for (const image of images) image.markStopped();
      if (this.running !== call) return;
      this.status.textContent = error instanceof Canceled ? 'Stopped.' : '';
      if (!(error instanceof Canceled)) this.page.showError(describe(error));
    } finally {
      if (this.running === call) {
        this.running = null;
        this.setBusy(false);
      }
    }
  }

  private setBusy(isBusy: boolean): void {
    // Move the focus before its button is disabled.
    if (!isBusy && document.activeElement === this.stop) byId('generate-button').focus();
    this.stop.disabled = !isBusy;
    this.progress.value = 0;
    this.progress.classList.toggle('idle', !isBusy);
    byId('images').setAttribute('aria-busy', String(isBusy));
  }

  /** Stops the generation. */
  cancel(): void {
    this.running?.cancel();
  }

  private createCard(generation: Generation, spec: ImageSpec, at: number, classes: readonly string[]): ImageCard {
    const name = displayName(classes[spec.label]!);
    const caption = `${name} seed ${generation.seed}${generation.neighborhood ? `, variation ${at}` : `, index ${spec.index}`}`;
    const card: ImageCard = new ImageCard(name, caption, {
      download: () => {
        if (!card.pixels) return;
        void toPng(card.pixels).then((blob) => blob && save(blob, fileName(generation, spec, classes)));
      },
      copyLink: () => {
        const hash = format('generate', singleImage(generation, spec, classes), this.modelHash);
        return copyText(new URL(hash, location.href).href);
      },
      more: () => {
        const similar = variations(generation, spec, classes, VARIATIONS);
        this.setControls(similar);
        void this.generate(similar, true);
        byId('generate-button').focus({ preventScroll: true });
      },
      classify: () => {
        if (card.pixels) this.page.classify(card.pixels, fileName(generation, spec, classes));
      },
    });
    return card;
  }

  private generateThumbnails(): void {
    this.thumbnails?.cancel();
    if (this.isPaused || !this.model) return;
    const { model } = this;
    const call = this.models.engine.call('thumbnails', {}, ({ label, image }) => {
      if (this.model === model) this.breeds.showThumbnail(label, image);
    });
    this.thumbnails = call;
    // Without thumbnails, the initials stay.
    call.result.catch(() => {});
  }

  /** Stops all computation during a benchmark. */
  setPaused(isPaused: boolean): void {
    this.isPaused = isPaused;
    if (isPaused) this.running?.cancel();
    this.generateThumbnails();
  }
}

export const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]!);

function summary(result: GenerateResult, count: number, { steps, sampler }: Generation): string {
  const mean = result.stepMs.reduce((a, b) => a + b, 0) / Math.max(1, result.stepMs.length);
  const each = count > 1 ? `, ${formatDuration(result.totalMs / count)} per image` : '';
  return `${pluralize(count, 'cat')} in ${formatDuration(result.totalMs)}${each}: ${pluralize(steps, `${sampler} step`)}, ${formatDuration(mean)} per step, on ${formatDevice(result.device)}; ${Math.round((100 * result.networkMs) / result.totalMs)} % of the time in the network.`;
}

