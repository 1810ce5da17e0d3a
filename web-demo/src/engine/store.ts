/**
 * The storage between visits, in IndexedDB, which also works without a secure context: models under their hash, parts of interrupted
 * downloads, and thumbnails. Every operation may fail for lack of space or permission; the page works without it.
 */

/** The parts of an interrupted download. */
export interface PartialDownload {
  /** The server's validator of this version of the file, for If-Range. */
  validator: string;
  parts: Uint8Array[];
}

export interface ModelStore {
  loadModel(hash: string): Promise<Uint8Array | null>;
  saveModel(hash: string, bytes: Uint8Array): Promise<void>;
  deleteModel(hash: string): Promise<void>;
  loadParts(hash: string): Promise<PartialDownload | null>;
  appendPart(hash: string, validator: string, at: number, part: Uint8Array): Promise<void>;
  deleteParts(hash: string): Promise<void>;
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
        // Close it for a newer version of the page in another tab.
        request.result.onversionchange = () => request.result.close();
        resolve(new Database(request.result));
      };
      request.onerror = () => reject(request.error ?? new Error('cannot open the database'));
      request.onblocked = () => reject(new Error('the database is in use by an older version of this page'));
    });
  }

  /** Runs one request in a transaction and waits for its completion: quota errors occur only then. */
  private transact<T>(store: StoreName, mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const transaction = this.db.transaction(store, mode);
      const request = work(transaction.objectStore(store));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error ?? new Error('storage failed'));
    });
  }

  async loadModel(hash: string): Promise<Uint8Array | null> {
    const blob = await this.transact<Blob | undefined>('models', 'readonly', (store) => store.get(hash) as IDBRequest<Blob | undefined>);
    return blob ? new Uint8Array(await blob.arrayBuffer()) : null;
  }

  async saveModel(hash: string, bytes: Uint8Array): Promise<void> {
    await this.transact('models', 'readwrite', (store) => store.put(new Blob([bytes as Uint8Array<ArrayBuffer>]), hash));
  }

  async deleteModel(hash: string): Promise<void> {
    await this.transact('models', 'readwrite', (store) => store.delete(hash));
  }

  async loadParts(hash: string): Promise<PartialDownload | null> {
    const parts = await this.transact<Part[]>('parts', 'readonly', (store) => store.getAll(range(hash)) as IDBRequest<Part[]>);
    const first = parts[0];
    if (!first) return null;
    return { validator: first.validator, parts: parts.map((part) => part.bytes) };
  }

  async appendPart(hash: string, validator: string, at: number, part: Uint8Array): Promise<void> {
    // Keys are sorted as strings.
    const key = `${hash}/${String(at).padStart(9, '0')}`;
    await this.transact('parts', 'readwrite', (store) => store.put({ validator, bytes: part } satisfies Part, key));
  }

  async deleteParts(hash: string): Promise<void> {
    await this.transact('parts', 'readwrite', (store) => store.delete(range(hash)));
  }

  async loadThumbnail(hash: string, label: number): Promise<Uint8ClampedArray<ArrayBuffer> | null> {
    const value = await this.transact('thumbnails', 'readonly', (store) => store.get(`${hash}/${label}`));
    return value instanceof Uint8ClampedArray ? (value as Uint8ClampedArray<ArrayBuffer>) : null;
  }

  async saveThumbnail(hash: string, label: number, rgba: Uint8ClampedArray): Promise<void> {
    await this.transact('thumbnails', 'readwrite', (store) => store.put(rgba, `${hash}/${label}`));
  }

  /** Deletes the data of all models except those with these hashes. */
  async evict(hashes: readonly string[]): Promise<void> {
    for (const store of ['models', 'parts', 'thumbnails'] satisfies StoreName[]) {
      const keys = await this.transact(store, 'readonly', (s) => s.getAllKeys());
      for (const key of keys) {
        const hash = String(key).split('/', 1)[0] ?? '';
        if (!hashes.includes(hash)) await this.transact(store, 'readwrite', (s) => s.delete(key));
      }
    }
  }
}

/** All keys with the prefix `hash/`: '0' is the character after '/'. */
const range = (hash: string) => IDBKeyRange.bound(`${hash}/`, `${hash}0`, false, true);
