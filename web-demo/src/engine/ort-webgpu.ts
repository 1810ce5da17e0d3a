/** The runtime for graphics cards. It is larger, and loaded only where there is an adapter. */
import * as ort from 'onnxruntime-web/webgpu';
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url';

/** The files of this build, for use without a network. */
export const files = [mjs, wasm].map((url) => new URL(url, import.meta.url).href);

export function start(): typeof ort {
  ort.env.wasm.wasmPaths = { mjs: files[0]!, wasm: files[1]! };
  // What the card does not compute is little; threads are not worth their start.
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  return ort;
}
