/** What the browser says about the device. */
import { webgpuAdapter } from '../engine/network.ts';
import { bytes } from './words.ts';

export async function describeDevice(): Promise<Record<string, string>> {
  const { deviceMemory } = navigator as { deviceMemory?: number };
  const { memory } = performance as { memory?: { usedJSHeapSize: number } };
  return {
    Browser: navigator.userAgent,
    'Logical cores': String(navigator.hardwareConcurrency || 'not told'),
    Memory: deviceMemory ? `${deviceMemory} GiB or more` : 'not told',
    'WebGPU adapter': (await webgpuAdapter()) ?? 'none',
    'Cross-origin isolated': crossOriginIsolated ? 'yes, so threads are allowed' : 'no, so there is one thread',
    'Secure context': isSecureContext ? 'yes' : 'no',
    ...(memory ? { "Page's heap": bytes(memory.usedJSHeapSize) } : {}),
  };
}
