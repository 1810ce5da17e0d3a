/** The browser's description of the device. */
import { type Adapter, webgpuAdapter } from '../engine/network.ts';
import { formatBytes } from './formatting.ts';

const adapterName = (adapter: Adapter | null) => (adapter ? `${adapter.name}${adapter.isSoftware ? ' (emulated on the CPU)' : ''}` : 'none');

export async function describeDevice(): Promise<Record<string, string>> {
  const { deviceMemory } = navigator as { deviceMemory?: number };
  const { memory } = performance as { memory?: { usedJSHeapSize: number } };
  return {
    Browser: navigator.userAgent,
    'Logical cores': String(navigator.hardwareConcurrency || 'unknown'),
    Memory: deviceMemory ? `${deviceMemory} GiB or more` : 'unknown',
    'WebGPU adapter': adapterName(await webgpuAdapter()),
    'Cross-origin isolated': crossOriginIsolated ? 'yes, threads are available' : 'no, only one thread',
    'Secure context': isSecureContext ? 'yes' : 'no',
    ...(memory ? { "Page's heap": formatBytes(memory.usedJSHeapSize) } : {}),
  };
}
