/** Registers the service worker, where one is allowed, and tells it which files of the runtime are in use. */
import type { Models } from '../models.ts';
import { hint } from './notices.ts';

export function startOffline(models: Models): void {
  models.on('loaded', ({ device }) => {
    if (device.threads > 1 || device.backend === 'webgpu') return;
    if (crossOriginIsolated || !isSecureContext) return;
    void whenControlled().then(() => {
      if ((navigator.hardwareConcurrency || 1) > 1) {
        hint('Drawing uses one core, because the server does not send the headers that allow threads (Cross-Origin-Opener-Policy, Cross-Origin-Embedder-Policy). From the next visit on, this page adds them itself.', { text: 'Reload now', run: () => location.reload() });
      }
    });
  });
  if (!import.meta.env.PROD || !isSecureContext || !('serviceWorker' in navigator)) return;
  navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' }).catch(() => {});
  models.on('loaded', ({ device }) => {
    void navigator.serviceWorker.ready.then(({ active }) => active?.postMessage({ keep: device.files }));
  });
}

async function whenControlled(): Promise<void> {
  if (!('serviceWorker' in navigator)) return;
  await navigator.serviceWorker.ready;
}
