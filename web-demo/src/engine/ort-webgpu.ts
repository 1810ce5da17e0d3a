/** The runtime for GPUs. It is larger, and loaded only if there is an adapter. */
import * as ort from 'onnxruntime-web/webgpu';
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url';

/** The files of this build, for use without a network. */
export const files = [mjs, wasm].map((url) => new URL(url, import.meta.url).href);

export function start(): typeof ort {
  ort.env.wasm.wasmPaths = { mjs: files[0]!, wasm: files[1]! };
  // The CPU computes little, so threads are not worth their startup time.
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  return ort;
}
