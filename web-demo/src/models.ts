/** Which models there are, which are in use, and the engine that runs them. */
import { Engine, type Call } from './engine/client.ts';
import { Cancelled, UserError, describe } from './engine/errors.ts';
import type { ModelMeta } from './engine/meta.ts';
import type { BackendChoice, ListedModel, LoadedModel, ModelSource, Progress } from './engine/protocol.ts';

export type Kind = ModelMeta['kind'];

export interface Settings {
  backend: BackendChoice;
  /** 0 for as many as are of use. */
  threads: number;
}

/** Everything whose change others want to know about. */
interface Events {
  /** How far loading a model has come; null when it is over. */
  progress: { kind: Kind | null; name: string; progress: Progress } | null;
  loaded: LoadedModel;
  failed: { name: string; error: string; kind: Kind | null };
}

type Listener<K extends keyof Events> = (event: Events[K]) => void;

/** Under one origin there may be several copies of this page. */
const STORAGE = `tiny-cats:${new URL('.', location.href).pathname}`;

export class Models {
  engine = new Engine();
  listed: ListedModel[] = [];
  settings: Settings = { backend: 'auto', threads: 0 };
  readonly current: { generator?: LoadedModel; classifier?: LoadedModel } = {};
  private readonly sources: { generator?: ModelSource; classifier?: ModelSource } = {};
  private readonly loading: { generator?: Promise<LoadedModel>; classifier?: Promise<LoadedModel> } = {};
  private readonly listeners: { [K in keyof Events]: Listener<K>[] } = { progress: [], loaded: [], failed: [] };
  private listing: Promise<void> | null = null;

  on<K extends keyof Events>(name: K, listener: Listener<K>): void {
    (this.listeners[name] as Listener<K>[]).push(listener);
  }

  private emit<K extends keyof Events>(name: K, event: Events[K]): void {
    for (const listener of this.listeners[name]) listener(event);
  }

  /** Readies the engine; models are loaded when they are asked for. */
  configure(settings: Settings): void {
    this.settings = settings;
    void this.engine.call('configure', { ...settings, storage: STORAGE }).result.catch(() => {});
  }

  /** The model of this kind that is in use, loaded now if it is not yet. */
  need(kind: Kind): Promise<LoadedModel> {
    const loaded = this.current[kind];
    if (loaded) return Promise.resolve(loaded);
    const running = this.loading[kind];
    if (running) return running;
    const started = this.load(kind).finally(() => {
      if (this.loading[kind] === started) delete this.loading[kind];
    });
    this.loading[kind] = started;
    return started;
  }

  private async load(kind: Kind): Promise<LoadedModel> {
    let name = 'models.json';
    try {
      const source = this.sources[kind] ?? { from: 'list' as const, model: await this.firstListed(kind) };
      name = nameOf(source);
      return await this.loadInto(this.engine, source, kind);
    } catch (error) {
      this.fail(name, error, kind);
      throw error;
    } finally {
      this.emit('progress', null);
    }
  }

  /** That another engine took over is no failure. */
  private fail(name: string, error: unknown, kind: Kind | null): void {
    if (!(error instanceof Cancelled)) this.emit('failed', { name, error: describe(error), kind });
  }

  private async loadInto(engine: Engine, source: ModelSource, kind: Kind | null): Promise<LoadedModel> {
    const name = nameOf(source);
    const call = this.loadCall(engine, source, (progress) => this.emit('progress', { kind, name, progress }));
    const model = await call.result;
    if (engine === this.engine) {
      this.sources[model.meta.kind] = source;
      this.current[model.meta.kind] = model;
      this.emit('loaded', model);
    }
    return model;
  }

  /** Loads a model into any engine, as a benchmark does. */
  loadCall(engine: Engine, source: ModelSource, tell: (progress: Progress) => void): Call<LoadedModel> {
    return engine.call('load', { source, listed: this.listed.map((model) => model.sha256) }, tell);
  }

  source(kind: Kind): ModelSource | undefined {
    return this.sources[kind];
  }

  private async firstListed(kind: Kind): Promise<ListedModel> {
    await this.list();
    const model = this.listed.find((model) => model.kind === kind);
    if (model) return model;
    throw new UserError(`models.json: expected a ${kind}, found none; a file of one can be dropped here`);
  }

  /** What the server offers; a failure is told and does not last. */
  list(): Promise<void> {
    this.listing ??= readList().then(
      (listed) => {
        this.listed = listed;
      },
      (error: unknown) => {
        this.listing = null;
        throw error;
      },
    );
    return this.listing;
  }

  /** Makes the model in a file that the visitor chose the current one of its kind. */
  async use(file: File): Promise<LoadedModel> {
    try {
      return await this.loadInto(this.engine, { from: 'file', name: file.name, file }, null);
    } catch (error) {
      this.fail(file.name, error, null);
      throw error;
    } finally {
      this.emit('progress', null);
    }
  }

  /** Begins anew with another backend or number of threads. The old engine's memory is freed. */
  async reconfigure(settings: Settings): Promise<void> {
    const kinds = (['generator', 'classifier'] as const).filter((kind) => this.current[kind] || this.loading[kind]);
    this.engine.close();
    for (const kind of kinds) {
      delete this.current[kind];
      delete this.loading[kind];
    }
    this.engine = new Engine();
    this.configure(settings);
    await Promise.all(kinds.map((kind) => this.need(kind)));
  }

  /** An engine of its own for a benchmark. */
  spare(settings: Settings): Engine {
    const engine = new Engine();
    void engine.call('configure', { ...settings, storage: STORAGE }).result.catch(() => {});
    return engine;
  }
}

export const nameOf = (source: ModelSource) => (source.from === 'list' ? source.model.name : source.name);

async function readList(): Promise<ListedModel[]> {
  let response: Response;
  try {
    response = await fetch('models.json', { cache: 'no-cache' });
  } catch (error) {
    throw new UserError(`models.json: ${describe(error)}`);
  }
  if (!response.ok) throw new UserError(`models.json: the server answered ${response.status}`);
  const json: unknown = await response.json().catch(() => null);
  const models = (json as { models?: unknown } | null)?.models;
  if (!Array.isArray(models)) throw new UserError('models.json: models: expected a list');
  return models.map(checked);
}

/** Addresses become absolute here, because the worker's own are relative to another folder. */
function checked(value: unknown, i: number): ListedModel {
  const model = (value ?? {}) as Record<string, unknown>;
  const wrong = (field: string, what: string) => new UserError(`models.json: models[${i}].${field}: expected ${what}`);
  const text = (field: string): string => {
    const found = model[field];
    if (typeof found !== 'string' || found === '') throw wrong(field, 'a text');
    return found;
  };
  const url = (field: string): string => {
    const found = new URL(text(field), document.baseURI);
    if (found.origin !== location.origin) throw wrong(field, "an address of this page's server");
    return found.href;
  };
  const { kind, bytes, card, report } = model;
  if (kind !== 'generator' && kind !== 'classifier') throw wrong('kind', 'generator or classifier');
  if (typeof bytes !== 'number' || !Number.isSafeInteger(bytes) || bytes <= 0) throw wrong('bytes', 'a number of bytes');
  const sha256 = text('sha256').toLowerCase();
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw wrong('sha256', '64 hexadecimal digits');
  return { name: text('name'), kind, url: url('url'), bytes, sha256, ...(card ? { card: url('card') } : {}), ...(report ? { report: url('report') } : {}) };
}
