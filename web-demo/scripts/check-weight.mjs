/**
 * Checks the size of a first visit, without models and WebAssembly. It counts the scripts of both runtimes, though a page loads only one,
 * and uncompressed sizes.
 */
import { readdirSync, statSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';

const LIMIT = 1_000_000;
const dist = resolve(import.meta.dirname, '../dist');
const walk = (folder) => readdirSync(folder, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? walk(join(folder, entry.name)) : [join(folder, entry.name)]));
const isModel = (file) => file.startsWith('models/');
const isWasm = (file) => file.endsWith('.wasm');

const files = walk(dist).map((path) => ({ file: relative(dist, path).replaceAll('\\', '/'), bytes: statSync(path).size }));
const sum = (list) => list.reduce((total, { bytes }) => total + bytes, 0);
const plain = files.filter(({ file }) => !file.endsWith('.gz'));
const shell = plain.filter(({ file }) => !isModel(file) && !isWasm(file));
const compressedSize = (file) => files.find((other) => other.file === `${file}.gz`)?.bytes;

for (const { file, bytes } of shell) console.log(`${String(bytes).padStart(10)}  ${file}`);
console.log(`${String(sum(shell)).padStart(10)}  the page, ${sum(shell.map(({ file, bytes }) => ({ bytes: compressedSize(file) ?? bytes })))} compressed; limit ${LIMIT}`);
for (const { file, bytes } of plain.filter(({ file }) => isWasm(file))) console.log(`${String(bytes).padStart(10)}  ${file}, ${compressedSize(file)} compressed`);

const wasm = plain.filter(({ file }) => isWasm(file)).map(({ file }) => file.split('/').at(-1));
const expected = ['ort-wasm-simd-threaded.asyncify.wasm', 'ort-wasm-simd-threaded.wasm'];
const problems = [
  ...(shell.length === 0 ? ['dist is missing or empty: run npm run build'] : []),
  ...(sum(shell) > LIMIT ? [`the page: expected at most ${LIMIT} bytes, found ${sum(shell)}`] : []),
  ...(wasm.sort().join() !== expected.join() ? [`expected ${expected}, found ${wasm}`] : []),
];
for (const problem of problems) console.error(problem);
process.exit(problems.length > 0 ? 1 : 0);
