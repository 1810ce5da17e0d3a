/**
 * What is kept between visits, in IndexedDB, which works also where the page is not served securely: models under their hash, the parts of
 * those that are half downloaded, and thumbnails. Everything here may fail, for want of space or permission; nothing depends on it.
 */

/** The parts of a download that was interrupted. */
export interface Partial {
  /** What the server calls this version of the file, to ask for the rest of the same one. */
  validator: string;
  parts: Uint8Array[];
}

export interface ModelStore {
  whole(hash: string): Promise<Uint8Array | null>;
  keep(hash: string, bytes: Uint8Array): Promise<void>;
  drop(hash: string): Promise<void>;
  partial(hash: string): Promise<Partial | null>;
  append(hash: string, validator: string, at: number, part: Uint8Array): Promise<void>;
  dropPartial(hash: string): Promise<void>;
}

type StoreName = 'models' | 'parts' | 'thumbnails';

interface Part {
  validator: string;
  bytes: Uint8Array;
}

export class Database implements ModelStore {
  private constructor(private readonly db: IDBDatabase) {}

  static open(name: string): Promise<Database> {
    return new Promise((resolve, reject) => {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => {
        for (const store of ['models', 'parts', 'thumbnails'] satisfies StoreName[]) request.result.createObjectStore(store);
      };
      request.onsuccess = () => {
        // Another tab with a newer version must not wait for this one.
        request.result.onversionchange = () => request.result.close();
        resolve(new Database(request.result));
      };
      request.onerror = () => reject(request.error ?? new Error('the database cannot be opened'));
      request.onblocked = () => reject(new Error('the database is in use by an older version of this page'));
    });
  }

  /** One transaction; done when it is, not when its request is, because room runs out only then. */
  private use<T>(store: StoreName, mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const transaction = this.db.transaction(store, mode);
      const request = work(transaction.objectStore(store));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error ?? new Error('storage failed'));
    });
  }

  async whole(hash: string): Promise<Uint8Array | null> {
    const blob = await this.use<Blob | undefined>('models', 'readonly', (store) => store.get(hash) as IDBRequest<Blob | undefined>);
    return blob ? new Uint8Array(await blob.arrayBuffer()) : null;
  }

  async keep(hash: string, bytes: Uint8Array): Promise<void> {
    await this.use('models', 'readwrite', (store) => store.put(new Blob([bytes as Uint8Array<ArrayBuffer>]), hash));
  }

  async drop(hash: string): Promise<void> {
    await this.use('models', 'readwrite', (store) => store.delete(hash));
  }

  async partial(hash: string): Promise<Partial | null> {
    const parts = await this.use<Part[]>('parts', 'readonly', (store) => store.getAll(range(hash)) as IDBRequest<Part[]>);
    const first = parts[0];
    if (!first) return null;
    return { validator: first.validator, parts: parts.map((part) => part.bytes) };
  }

  async append(hash: string, validator: string, at: number, part: Uint8Array): Promise<void> {
    // Keys are ordered as texts are.
    const key = `${hash}/${String(at).padStart(9, '0')}`;
    await this.use('parts', 'readwrite', (store) => store.put({ validator, bytes: part } satisfies Part, key));
  }

  async dropPartial(hash: string): Promise<void> {
    await this.use('parts', 'readwrite', (store) => store.delete(range(hash)));
  }

  async thumbnail(hash: string, label: number): Promise<Uint8ClampedArray<ArrayBuffer> | null> {
    const found = await this.use('thumbnails', 'readonly', (store) => store.get(`${hash}/${label}`));
    return found instanceof Uint8ClampedArray ? (found as Uint8ClampedArray<ArrayBuffer>) : null;
  }

  async keepThumbnail(hash: string, label: number, rgba: Uint8ClampedArray): Promise<void> {
    await this.use('thumbnails', 'readwrite', (store) => store.put(rgba, `${hash}/${label}`));
  }

  /** Forgets everything that belongs to none of the models with these hashes. */
  async evict(hashes: readonly string[]): Promise<void> {
    for (const store of ['models', 'parts', 'thumbnails'] satisfies StoreName[]) {
      const keys = await this.use(store, 'readonly', (s) => s.getAllKeys());
      for (const key of keys) {
        const hash = String(key).split('/', 1)[0] ?? '';
        if (!hashes.includes(hash)) await this.use(store, 'readwrite', (s) => s.delete(key));
      }
    }
  }
}

/** All keys that begin with `hash/`; '0' follows '/'. */
const range = (hash: string) => IDBKeyRange.bound(`${hash}/`, `${hash}0`, false, true);
