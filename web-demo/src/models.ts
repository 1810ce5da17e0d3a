/** The available models, the loaded models, and the engine that runs them. */
import { Engine, type Call } from './engine/client.ts';
import { Canceled, UserError, describe } from './engine/errors.ts';
import type { ModelMeta } from './engine/meta.ts';
import type { BackendChoice, ListedModel, LoadedModel, ModelSource, Progress } from './engine/protocol.ts';

export type Kind = ModelMeta['kind'];

export interface Settings {
  backend: BackendChoice;
  /** 0 for the default number. */
  threads: number;
}

/** Events that views listen to. */
interface Events {
  /** The progress of loading a model; null when loading ends. */
  progress: { kind: Kind | null; name: string; progress: Progress } | null;
  loaded: LoadedModel;
  failed: { name: string; error: string; kind: Kind | null };
}

type Listener<K extends keyof Events> = (event: Events[K]) => void;

/** The storage name includes the path, because an origin may host several copies of this page. */
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

  /** Configures the engine. Models are loaded on demand. */
  configure(settings: Settings): void {
    this.settings = settings;
    void this.engine.call('configure', { ...settings, storage: STORAGE }).result.catch(() => {});
  }

  /** Returns the current model of a kind, and loads it first if necessary. */
  ensureLoaded(kind: Kind): Promise<LoadedModel> {
    const loaded = this.current[kind];
    if (loaded) return Promise.resolve(loaded);
    const running = this.loading[kind];
    if (running) return running;
    const promise = this.load(kind).finally(() => {
      if (this.loading[kind] === promise) delete this.loading[kind];
    });
    this.loading[kind] = promise;
    return promise;
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

  /** Emits a failure, except when another engine replaced this one. */
  private fail(name: string, error: unknown, kind: Kind | null): void {
    if (!(error instanceof Canceled)) this.emit('failed', { name, error: describe(error), kind });
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

  /** Loads a model into an engine. */
  loadCall(engine: Engine, source: ModelSource, onProgress: (progress: Progress) => void): Call<LoadedModel> {
    return engine.call('load', { source, listed: this.listed.map((model) => model.sha256) }, onProgress);
  }

  source(kind: Kind): ModelSource | undefined {
    return this.sources[kind];
  }

  private async firstListed(kind: Kind): Promise<ListedModel> {
    await this.list();
    const model = this.listed.find((model) => model.kind === kind);
    if (model) return model;
    throw new UserError(`models.json: expected a ${kind}, found none; drop a model file here`);
  }

  /** Loads the list of models once; after a failure, the next call retries. */
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

  /** Loads a model file of the visitor and makes it the current model of its kind. */
  async useFile(file: File): Promise<LoadedModel> {
    try {
      return await this.loadInto(this.engine, { from: 'file', name: file.name, file }, null);
    } catch (error) {
      this.fail(file.name, error, null);
      throw error;
    } finally {
      this.emit('progress', null);
    }
  }

  /** Restarts the engine with another backend or number of threads, and frees the memory of the old one. */
  async reconfigure(settings: Settings): Promise<void> {
    const kinds = (['generator', 'classifier'] as const).filter((kind) => this.current[kind] || this.loading[kind]);
    this.engine.close();
    for (const kind of kinds) {
      delete this.current[kind];
      delete this.loading[kind];
    }
    this.engine = new Engine();
    this.configure(settings);
    await Promise.all(kinds.map((kind) => this.ensureLoaded(kind)));
  }

  /** Creates a separate engine for a benchmark. */
  createEngine(settings: Settings): Engine {
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
  return models.map(parseListedModel);
}

/** Checks an entry of `models.json` and makes its URLs absolute: the worker resolves relative URLs against another folder. */
function parseListedModel(value: unknown, i: number): ListedModel {
  const model = (value ?? {}) as Record<string, unknown>;
  const error = (field: string, expected: string) => new UserError(`models.json: models[${i}].${field}: expected ${expected}`);
  const text = (field: string): string => {
    const value = model[field];
    if (typeof value !== 'string' || value === '') throw error(field, 'a string');
    return value;
  };
  const url = (field: string): string => {
    const url = new URL(text(field), document.baseURI);
    if (url.origin !== location.origin) throw error(field, "a URL of this page's server");
    return url.href;
  };
  const { kind, bytes, card, report } = model;
  if (kind !== 'generator' && kind !== 'classifier') throw error('kind', 'generator or classifier');
  if (typeof bytes !== 'number' || !Number.isSafeInteger(bytes) || bytes <= 0) throw error('bytes', 'a number of bytes');
  const sha256 = text('sha256').toLowerCase();
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw error('sha256', '64 hexadecimal digits');
  return { name: text('name'), kind, url: url('url'), bytes, sha256, ...(card ? { card: url('card') } : {}), ...(report ? { report: url('report') } : {}) };
}
