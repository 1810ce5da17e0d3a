/**
 * The service worker: keeps the page for use without a network, under one name a version, and adds the headers that allow threads where
 * a static host does not send them. Models are not kept here but by the page, under their hash.
 */
export {};
declare const self: ServiceWorkerGlobalScope;

const shell = JSON.parse('__SHELL__') as { version: string; files: string[] };
const SHELL = `tiny-cats-shell-${shell.version}`;
/** Folders of runtimes are named by their version, so their files never change. */
const RUNTIMES = 'tiny-cats-runtimes';
const RUNTIME = /\/ort-[\d.]+\/[\w.-]+$/;

const here = new URL(self.registration.scope);
const urlOf = (file: string) => new URL(file, here).href;

self.addEventListener('install', (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(SHELL);
      await cache.addAll(shell.files.map((file) => new Request(urlOf(file), { cache: 'reload' })));
      // The first visit has asked for it already, before there was anyone to keep it.
      await cache.add(urlOf('models.json')).catch(() => {});
    })(),
  );
});

self.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      // Other pages of this origin may have caches of their own.
      const stale = (await caches.keys()).filter((name) => name.startsWith('tiny-cats-shell-') && name !== SHELL);
      await Promise.all(stale.map((name) => caches.delete(name)));
      await self.clients.claim();
    })(),
  );
});

/** The page lets a new version in, or names the files of the runtime that it uses; those of another version are forgotten. */
self.addEventListener('message', (event) => {
  const { keep, activate } = (event.data ?? {}) as { keep?: string[]; activate?: boolean };
  if (activate) event.waitUntil(self.skipWaiting());
  if (Array.isArray(keep)) event.waitUntil(keepRuntime(keep.filter((url) => url.startsWith(here.href) && RUNTIME.test(url))));
});

async function keepRuntime(urls: string[]): Promise<void> {
  if (urls.length === 0) return;
  const cache = await caches.open(RUNTIMES);
  const folder = (url: string) => url.slice(0, url.lastIndexOf('/'));
  for (const { url } of await cache.keys()) {
    if (url.startsWith(here.href) && folder(url) !== folder(urls[0]!)) await cache.delete(url);
  }
  for (const url of urls) if (!(await cache.match(url))) await cache.add(url);
}

self.addEventListener('fetch', (event) => {
  const { request } = event;
  if (request.method !== 'GET' || !request.url.startsWith(here.href)) return;
  const path = request.url.slice(here.href.length).split(/[?#]/, 1)[0] ?? '';
  // Ranges and hashes of models are the page's own business.
  if (path.startsWith('models/')) return;
  event.respondWith(answer(request, path));
});

async function answer(request: Request, path: string): Promise<Response> {
  if (path === 'models.json') return isolated(await freshFirst(request));
  const name = request.mode === 'navigate' && path === '' ? 'index.html' : path;
  const cached = shell.files.includes(name) ? await (await caches.open(SHELL)).match(urlOf(name)) : await caches.match(request.url, { cacheName: RUNTIMES });
  if (cached) return isolated(cached);
  const response = await fetch(request);
  if (response.ok && RUNTIME.test(request.url)) {
    const copy = response.clone();
    await caches.open(RUNTIMES).then((cache) => cache.put(request.url, copy), () => {}).catch(() => {});
  }
  return isolated(response);
}

/** The list of models as the server has it now; without a network, as it was. */
async function freshFirst(request: Request): Promise<Response> {
  const cache = await caches.open(SHELL);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(urlOf('models.json'), response.clone()).catch(() => {});
    return response;
  } catch (error) {
    const cached = await cache.match(urlOf('models.json'));
    if (cached) return cached;
    throw error;
  }
}

/** The response with the headers that make a page cross-origin isolated. */
function isolated(response: Response): Response {
  if (response.type === 'opaque' || response.type === 'opaqueredirect' || response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  const body = [101, 204, 205, 304].includes(response.status) ? null : response.body;
  return new Response(body, { status: response.status, statusText: response.statusText, headers });
}
