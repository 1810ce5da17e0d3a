/** The runtime for CPUs: WebAssembly with SIMD, and with threads if the page is cross-origin isolated. */
import * as ort from 'onnxruntime-web/wasm';
import mjs from 'onnxruntime-web/ort-wasm-simd-threaded.mjs?url';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url';

/** The files of this build, for use without a network. */
export const files = [mjs, wasm].map((url) => new URL(url, import.meta.url).href);

export function start(threads: number): typeof ort {
  ort.env.wasm.wasmPaths = { mjs: files[0]!, wasm: files[1]! };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = 'error';
  return ort;
}
