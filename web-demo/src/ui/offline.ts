/** Registers the service worker, where one is allowed, and says why there is one thread only where that is so. */
import type { Models } from '../models.ts';
import { hint } from './notices.ts';

const HEADERS = 'Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp';

export function startOffline(models: Models): void {
  const registered = register();
  models.on('loaded', ({ device }) => {
    void registered.then((registration) => keep(registration, device.files));
    if (device.backend === 'webgpu' || crossOriginIsolated || (navigator.hardwareConcurrency || 1) < 2) return;
    void registered.then((registration) => {
      if (!isSecureContext) {
        hint('Drawing uses one core: this page is not served securely (by HTTPS or from this device), and threads need that.');
      } else if (!registration) {
        hint(`Drawing uses one core: the server does not send the headers that allow threads, ${HEADERS}.`);
      } else {
        hint(`Drawing uses one core: the server does not send the headers that allow threads, ${HEADERS}. From the next visit on this page adds them itself.`, { text: 'Reload now', run: () => location.reload() });
      }
    });
  });
}

async function register(): Promise<ServiceWorkerRegistration | null> {
  if (!import.meta.env.PROD || !isSecureContext || !('serviceWorker' in navigator)) return null;
  try {
    const registration = await navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' });
    watch(registration);
    return await navigator.serviceWorker.ready;
  } catch {
    // Browsers may forbid it; the page then needs the network.
    return null;
  }
}

function keep(registration: ServiceWorkerRegistration | null, files: string[]): void {
  registration?.active?.postMessage({ keep: files });
}

/** A new version waits until this page is gone, because its files are not this page's; or until it is let in. */
function watch(registration: ServiceWorkerRegistration): void {
  const offer = (worker: ServiceWorker | null) => {
    if (!worker || !navigator.serviceWorker.controller) return;
    hint('A newer version of this page is ready.', {
      text: 'Use it now',
      run: () => {
        navigator.serviceWorker.addEventListener('controllerchange', () => location.reload(), { once: true });
        worker.postMessage({ activate: true });
      },
    });
  };
  offer(registration.waiting);
  registration.addEventListener('updatefound', () => {
    const worker = registration.installing;
    worker?.addEventListener('statechange', () => {
      if (worker.state === 'installed') offer(worker);
    });
  });
}
