/** What the browser says about the device. */
import { type Adapter, webgpuAdapter } from '../engine/network.ts';
import { bytes } from './words.ts';

const named = (adapter: Adapter | null) => (adapter ? `${adapter.name}${adapter.software ? ' (the processor)' : ''}` : 'none');

export async function describeDevice(): Promise<Record<string, string>> {
  const { deviceMemory } = navigator as { deviceMemory?: number };
  const { memory } = performance as { memory?: { usedJSHeapSize: number } };
  return {
    Browser: navigator.userAgent,
    'Logical cores': String(navigator.hardwareConcurrency || 'not told'),
    Memory: deviceMemory ? `${deviceMemory} GiB or more` : 'not told',
    'WebGPU adapter': named(await webgpuAdapter()),
    'Cross-origin isolated': crossOriginIsolated ? 'yes, so threads are allowed' : 'no, so there is one thread',
    'Secure context': isSecureContext ? 'yes' : 'no',
    ...(memory ? { "Page's heap": bytes(memory.usedJSHeapSize) } : {}),
  };
}
