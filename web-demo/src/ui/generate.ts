/** The view that draws. */
import { alone, complete, draws as drawsOf, fileName, labelOf, likeIt, readable } from '../drawing.ts';
import type { Call } from '../engine/client.ts';
import { Cancelled, describe } from '../engine/errors.ts';
import type { GeneratorMeta } from '../engine/meta.ts';
import type { Draw, DrawResult, LoadedModel, Pixels } from '../engine/protocol.ts';
import type { Models } from '../models.ts';
import { ALL, type Drawing, format } from '../state.ts';
import { Breeds } from './breeds.ts';
import { png } from './canvas.ts';
import { Controls } from './controls.ts';
import { byId, copy, save } from './dom.ts';
import { Picture } from './picture.ts';
import { device, duration, plural } from './words.ts';

const AROUND = 9;

interface Outside {
  /** The page's address becomes that of `drawing`; a visit to remember when something was drawn. */
  address(drawing: Drawing, remember: boolean): void;
  classify(pixels: Pixels, name: string): void;
  complain(error: string): void;
  /** Whether this is the view that is seen. */
  visible(): boolean;
  /** What was complained of is over. */
  forgive(): void;
}

export class Generate {
  private readonly breeds = new Breeds(() => this.edited());
  private readonly controls = new Controls(() => this.edited());
  private readonly status = byId('draw-status');
  private readonly progress = byId<HTMLProgressElement>('draw-progress');
  private readonly stop = byId<HTMLButtonElement>('stop');
  private model: LoadedModel | null = null;
  private wanted: Partial<Drawing> | null = null;
  private running: Call<DrawResult> | null = null;
  private thumbnails: Call<null> | null = null;
  private pending: Drawing | null = null;
  private isQuiet = false;
  /** The neighbourhood that the pictures are from, until something is drawn from the controls again. */
  private near: Pick<Drawing, 'near' | 'around'> = { near: [], around: false };

  constructor(
    private readonly models: Models,
    private readonly outside: Outside,
  ) {
    byId('controls').addEventListener('submit', (event) => {
      event.preventDefault();
      void this.draw(this.drawing(), true);
    });
    byId('dice').addEventListener('click', () => {
      this.controls.seed = randomSeed();
      this.edited();
    });
    byId('surprise').addEventListener('click', () => this.surprise());
    this.stop.addEventListener('click', () => this.running?.cancel());
    models.on('loaded', (model) => {
      if (model.meta.kind === 'generator') this.use(model, model.meta);
    });
  }

  private use(model: LoadedModel, meta: GeneratorMeta): void {
    const before = this.model;
    this.model = model;
    if (before?.sha256 !== model.sha256) this.breeds.fill(meta.classes);
    const drawing = complete(this.next(before), meta);
    this.set(drawing);
    this.outside.address(drawing, false);
    this.pending = drawing;
    this.entered();
  }

  /** What is not seen is not drawn: a model that was loaded behind another view draws when this one is entered. */
  entered(): void {
    if (!this.pending || !this.outside.visible()) return;
    const drawing = this.pending;
    this.pending = null;
    void this.draw(drawing, false).then(() => this.drawThumbnails());
  }

  /** What is drawn when a model is ready: at first what the address asks for, and by another model, as that one advises. */
  private next(before: LoadedModel | null): Partial<Drawing> {
    if (!before) return this.wanted ?? { seed: randomSeed(), count: 4 };
    const drawing = this.drawing();
    if (before.sha256 === this.model?.sha256) return drawing;
    const { breed, seed, index, count } = drawing;
    return { breed, seed, index, count };
  }

  /** What the address asks for: at once, or when there is a model. */
  restore(drawing: Partial<Drawing>): void {
    this.wanted = drawing;
    if (this.model?.meta.kind !== 'generator') return;
    this.pending = null;
    const whole = complete(drawing, this.model.meta);
    this.set(whole);
    void this.draw(whole, false);
  }

  /** What the controls say. */
  drawing(): Drawing {
    return { breed: this.breeds.value, ...this.controls.read(), ...this.near };
  }

  get hash(): string | null {
    return this.model?.sha256 ?? null;
  }

  get ready(): boolean {
    return this.model !== null;
  }

  private set(drawing: Drawing): void {
    const classes = this.model?.meta.classes ?? [];
    const label = labelOf(drawing.breed, classes);
    this.breeds.value = label === null ? ALL : classes[label]!;
    this.controls.write(drawing);
    this.near = { near: drawing.near, around: drawing.around };
  }

  private edited(): void {
    // Another seed or breed has other neighbours.
    this.near = { near: [], around: false };
    if (this.model) this.outside.address(this.drawing(), false);
  }

  private surprise(): void {
    const classes = this.model?.meta.classes ?? [];
    this.breeds.value = classes[Math.floor(Math.random() * classes.length)] ?? ALL;
    this.controls.seed = randomSeed();
    this.edited();
    void this.draw(this.drawing(), true);
  }

  private async draw(drawing: Drawing, remember: boolean): Promise<void> {
    const { model } = this;
    if (model?.meta.kind !== 'generator') {
      this.status.textContent = 'The model is not ready yet.';
      return;
    }
    const { classes } = model.meta;
    const draws = drawsOf(drawing, classes);
    if (!draws) {
      this.outside.complain(`breed: ${model.name} knows no ${readable(drawing.breed)}`);
      return;
    }
    this.running?.cancel();
    this.outside.forgive();
    this.outside.address(drawing, remember);
    const pictures = draws.map((draw, i) => this.picture(drawing, draw, i, classes));
    const list = byId('pictures');
    list.classList.toggle('one', pictures.length === 1);
    list.classList.toggle('two', pictures.length === 2 || pictures.length === 4);
    list.replaceChildren(...pictures.map((picture) => picture.element));
    this.busy(true);
    this.status.textContent = `Drawing ${plural(draws.length, 'cat')}…`;
    const { seed, steps, guidance, sampler } = drawing;
    const call = this.models.engine.call('draw', { seed, draws, steps, guidance, sampler }, (event) => {
      event.pictures.forEach((pixels, i) => pictures[event.first + i]?.show(pixels, event.done / event.steps));
      if (this.running === call) this.progress.value = event.overall;
    });
    this.running = call;
    try {
      const result = await call.result;
      if (this.running === call) this.status.textContent = summary(result, draws.length, drawing);
    } catch (error) {
      for (const picture of pictures) picture.abandon();
      if (this.running !== call) return;
      this.status.textContent = error instanceof Cancelled ? 'Stopped.' : '';
      if (!(error instanceof Cancelled)) this.outside.complain(describe(error));
    } finally {
      if (this.running === call) {
        this.running = null;
        this.busy(false);
      }
    }
  }

  private busy(busy: boolean): void {
    // The focus must not fall off a button that is switched off under it.
    if (!busy && document.activeElement === this.stop) byId('draw').focus();
    this.stop.disabled = !busy;
    this.progress.value = 0;
    this.progress.classList.toggle('idle', !busy);
    byId('pictures').setAttribute('aria-busy', String(busy));
  }

  /** Escape stops, too. */
  cancel(): void {
    this.running?.cancel();
  }

  private picture(drawing: Drawing, draw: Draw, at: number, classes: readonly string[]): Picture {
    const name = readable(classes[draw.label]!);
    const caption = `${name} seed ${drawing.seed}${drawing.around ? `, variation ${at}` : `, number ${draw.index}`}`;
    const picture: Picture = new Picture(name, caption, {
      download: () => {
        if (!picture.pixels) return;
        void png(picture.pixels).then((blob) => blob && save(blob, fileName(drawing, draw, classes)));
      },
      copyLink: () => {
        const address = format('generate', alone(drawing, draw, classes), this.hash);
        return copy(new URL(address, location.href).href);
      },
      more: () => {
        const like = likeIt(drawing, draw, classes, AROUND);
        this.set(like);
        void this.draw(like, true);
        byId('draw').focus({ preventScroll: true });
      },
      classify: () => {
        if (picture.pixels) this.outside.classify(picture.pixels, fileName(drawing, draw, classes));
      },
    });
    return picture;
  }

  private drawThumbnails(): void {
    this.thumbnails?.cancel();
    if (this.isQuiet || !this.model) return;
    const { model } = this;
    const call = this.models.engine.call('thumbnails', {}, ({ label, picture }) => {
      if (this.model === model) this.breeds.thumbnail(label, picture);
    });
    this.thumbnails = call;
    // Initials do as well.
    call.result.catch(() => {});
  }

  /** A benchmark wants the processor for itself. */
  quiet(quiet: boolean): void {
    this.isQuiet = quiet;
    if (quiet) this.running?.cancel();
    this.drawThumbnails();
  }
}

export const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]!);

function summary(result: DrawResult, pictures: number, { steps, sampler }: Drawing): string {
  const mean = result.stepMs.reduce((a, b) => a + b, 0) / Math.max(1, result.stepMs.length);
  const each = pictures > 1 ? `, ${duration(result.totalMs / pictures)} a picture` : '';
  return `${plural(pictures, 'cat')} in ${duration(result.totalMs)}${each}: ${plural(steps, 'step')} by ${sampler}, ${duration(mean)} a step, on ${device(result.device)}; ${Math.round((100 * result.networkMs) / result.totalMs)} % of it in the network.`;
}

