/** Registers the service worker, and shows a hint if only one thread is available. */
import type { Models } from '../models.ts';
import { showHint } from './notices.ts';

const HEADERS = 'Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp';

export function startOffline(models: Models): void {
  const registered = register();
  models.on('loaded', ({ device }) => {
    void registered.then((registration) => cacheRuntime(registration, device.files));
    if (device.backend === 'webgpu' || crossOriginIsolated || (navigator.hardwareConcurrency || 1) < 2) return;
    void registered.then((registration) => {
      if (!isSecureContext) {
        showHint('Generation uses one core: this page is not served securely (by HTTPS or from this device), which threads need.');
      } else if (!registration) {
        showHint(`Generation uses one core: the server does not send the headers that threads need, ${HEADERS}.`);
      } else {
        showHint(`Generation uses one core: the server does not send the headers that threads need, ${HEADERS}. From the next visit on, this page adds them itself.`, { text: 'Reload now', run: () => location.reload() });
      }
    });
  });
}

async function register(): Promise<ServiceWorkerRegistration | null> {
  if (!import.meta.env.PROD || !isSecureContext || !('serviceWorker' in navigator)) return null;
  try {
    const registration = await navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' });
    watchForUpdates(registration);
    return await navigator.serviceWorker.ready;
  } catch {
    // Without a service worker, the page needs the network.
    return null;
  }
}

function cacheRuntime(registration: ServiceWorkerRegistration | null, files: string[]): void {
  registration?.active?.postMessage({ keep: files });
}

/** Offers a new version, which otherwise waits until this page is closed: the versions have different files. */
function watchForUpdates(registration: ServiceWorkerRegistration): void {
  const offerUpdate = (worker: ServiceWorker | null) => {
    if (!worker || !navigator.serviceWorker.controller) return;
    showHint('A newer version of this page is ready.', {
      text: 'Use it now',
      run: () => {
        navigator.serviceWorker.addEventListener('controllerchange', () => location.reload(), { once: true });
        worker.postMessage({ activate: true });
      },
    });
  };
  offerUpdate(registration.waiting);
  registration.addEventListener('updatefound', () => {
    const worker = registration.installing;
    worker?.addEventListener('statechange', () => {
      if (worker.state === 'installed') offerUpdate(worker);
    });
  });
}
