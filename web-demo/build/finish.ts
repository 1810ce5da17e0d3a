/**
 * The last of a build: the service worker is told which files are the page and what they are called together, and each large text file
 * and WebAssembly file gets a compressed one beside it, for servers that send such files.
 */
import { createHash } from 'node:crypto';
import { readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, relative, resolve, sep } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Plugin } from 'vite';

const COMPRESSED = /\.(wasm|mjs|js|css|html|json|md|svg|webmanifest)$/;
const LEAST_BYTES = 1024;
/** Models are kept by the page itself under their hash, and a runtime when it is used. */
const NOT_SHELL = /^(models(\/|\.json$)|ort-|sw\.js$)|\.gz$/;

export function finish(): Plugin {
  let out = 'dist';
  return {
    name: 'tiny-cats-finish',
    apply: 'build',
    enforce: 'post',
    configResolved: (config) => {
      out = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      removeDuplicates(out);
      const shell = walk(out).filter((file) => !NOT_SHELL.test(file)).sort();
      const hash = createHash('sha256');
      for (const file of shell) hash.update(`${file}\n`).update(readFileSync(join(out, file)));
      const worker = join(out, 'sw.js');
      const script = readFileSync(worker, 'utf8');
      const placeholder = /(["'`])__SHELL__\1/;
      if (!placeholder.test(script)) throw new Error('sw.js has no place for the list of files');
      const told = { version: hash.digest('hex').slice(0, 16), files: shell };
      writeFileSync(worker, script.replace(placeholder, () => JSON.stringify(JSON.stringify(told))));
      for (const file of walk(out).filter((file) => COMPRESSED.test(file))) compress(join(out, file));
    },
  };
}

/** A worker's build may emit the runtime's files under hashed names as well; nothing refers to what is not used. */
function removeDuplicates(out: string): void {
  const files = walk(out);
  const texts = files.filter((file) => /\.(js|mjs|html)$/.test(file)).map((file) => readFileSync(join(out, file), 'utf8'));
  for (const file of files.filter((file) => file.endsWith('.wasm'))) {
    const name = file.split('/').at(-1)!;
    if (!texts.some((text) => text.includes(name))) rmSync(join(out, file));
  }
}

function compress(path: string): void {
  const bytes = readFileSync(path);
  if (bytes.length < LEAST_BYTES) return;
  const small = gzipSync(bytes, { level: 9 });
  if (small.length < bytes.length) writeFileSync(`${path}.gz`, small);
}

function walk(folder: string, root = folder): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? walk(path, root) : [relative(root, path).split(sep).join('/')];
  });
}
