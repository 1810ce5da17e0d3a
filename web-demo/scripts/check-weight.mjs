/**
 * What a first visit loads, before models and without the runtime's WebAssembly: it must stay small. Both runtimes' scripts are counted,
 * though only one is loaded, and nothing is counted compressed.
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
const zipped = (file) => files.find((other) => other.file === `${file}.gz`)?.bytes;

for (const { file, bytes } of shell) console.log(`${String(bytes).padStart(10)}  ${file}`);
console.log(`${String(sum(shell)).padStart(10)}  the page, ${sum(shell.map(({ file, bytes }) => ({ bytes: zipped(file) ?? bytes })))} compressed; limit ${LIMIT}`);
for (const { file, bytes } of plain.filter(({ file }) => isWasm(file))) console.log(`${String(bytes).padStart(10)}  ${file}, ${zipped(file)} compressed`);

const wasm = plain.filter(({ file }) => isWasm(file)).map(({ file }) => file.split('/').at(-1));
const expected = ['ort-wasm-simd-threaded.asyncify.wasm', 'ort-wasm-simd-threaded.wasm'];
const problems = [
  ...(shell.length === 0 ? ['there is no page: npm run build'] : []),
  ...(sum(shell) > LIMIT ? [`the page has ${sum(shell)} bytes, more than ${LIMIT}`] : []),
  ...(wasm.sort().join() !== expected.join() ? [`expected ${expected}, found ${wasm}`] : []),
];
for (const problem of problems) console.error(problem);
process.exit(problems.length > 0 ? 1 : 0);
