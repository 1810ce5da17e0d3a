/**
 * The service worker: caches the page for use without a network, with one cache per version, and adds the cross-origin isolation headers,
 * which threads need, if the server does not send them. It does not cache models: the page stores them under their hash.
 */
export {};
declare const self: ServiceWorkerGlobalScope;

const shell = JSON.parse('__SHELL__') as { version: string; files: string[] };
const SHELL = `tiny-cats-shell-${shell.version}`;
/** The folder names of runtimes contain their version, so their files never change. */
const RUNTIMES = 'tiny-cats-runtimes';
const RUNTIME = /\/ort-[\d.]+\/[\w.-]+$/;

const scope = new URL(self.registration.scope);
const urlOf = (file: string) => new URL(file, scope).href;

self.addEventListener('install', (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(SHELL);
      await cache.addAll(shell.files.map((file) => new Request(urlOf(file), { cache: 'reload' })));
      // The first visit requested it before the service worker was active.
      await cache.add(urlOf('models.json')).catch(() => {});
    })(),
  );
});

self.addEventListener('activate', (event) => {
  event.waitUntil(
    (async () => {
      // Other pages of this origin may have their own caches.
      const stale = (await caches.keys()).filter((name) => name.startsWith('tiny-cats-shell-') && name !== SHELL);
      await Promise.all(stale.map((name) => caches.delete(name)));
      await self.clients.claim();
    })(),
  );
});

/** Activates a new version, or caches the runtime's files that the page names and deletes those of other versions. */
self.addEventListener('message', (event) => {
  const { keep, activate } = (event.data ?? {}) as { keep?: string[]; activate?: boolean };
  if (activate) event.waitUntil(self.skipWaiting());
  if (Array.isArray(keep)) event.waitUntil(cacheRuntime(keep.filter((url) => url.startsWith(scope.href) && RUNTIME.test(url))));
});

async function cacheRuntime(urls: string[]): Promise<void> {
  if (urls.length === 0) return;
  const cache = await caches.open(RUNTIMES);
  const folder = (url: string) => url.slice(0, url.lastIndexOf('/'));
  for (const { url } of await cache.keys()) {
    if (url.startsWith(scope.href) && folder(url) !== folder(urls[0]!)) await cache.delete(url);
  }
  for (const url of urls) if (!(await cache.match(url))) await cache.add(url);
}

self.addEventListener('fetch', (event) => {
  const { request } = event;
  if (request.method !== 'GET' || !request.url.startsWith(scope.href)) return;
  const path = request.url.slice(scope.href.length).split(/[?#]/, 1)[0] ?? '';
  // The page itself downloads models, with ranges and hashes.
  if (path.startsWith('models/')) return;
  event.respondWith(respond(request, path));
});

async function respond(request: Request, path: string): Promise<Response> {
  if (path === 'models.json') return withIsolationHeaders(await networkFirst(request));
  const name = request.mode === 'navigate' && path === '' ? 'index.html' : path;
  const cached = shell.files.includes(name) ? await (await caches.open(SHELL)).match(urlOf(name)) : await caches.match(request.url, { cacheName: RUNTIMES });
  if (cached) return withIsolationHeaders(cached);
  const response = await fetch(request);
  if (response.ok && RUNTIME.test(request.url)) {
    const copy = response.clone();
    await caches.open(RUNTIMES).then((cache) => cache.put(request.url, copy), () => {}).catch(() => {});
  }
  return withIsolationHeaders(response);
}

/** Fetches the list of models; without a network, returns the cached list. */
async function networkFirst(request: Request): Promise<Response> {
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

/** Adds the headers that make a page cross-origin isolated. */
function withIsolationHeaders(response: Response): Response {
  if (response.type === 'opaque' || response.type === 'opaqueredirect' || response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  const body = [101, 204, 205, 304].includes(response.status) ? null : response.body;
  return new Response(body, { status: response.status, statusText: response.statusText, headers });
}
