/**
 * The last step of a build: writes the list of the page's files and its version into the service worker, and compresses large text and
 * WebAssembly files with gzip, for servers that send compressed files.
 */
import { createHash } from 'node:crypto';
import { readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, relative, resolve, sep } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Plugin } from 'vite';

const COMPRESSED = /\.(wasm|mjs|js|css|html|json|md|svg|webmanifest)$/;
const MIN_BYTES = 1024;
/** Files that the service worker does not cache at installation: the page stores models, and runtimes are cached on first use. */
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
      if (!placeholder.test(script)) throw new Error('sw.js: expected the placeholder __SHELL__');
      const manifest = { version: hash.digest('hex').slice(0, 16), files: shell };
      writeFileSync(worker, script.replace(placeholder, () => JSON.stringify(JSON.stringify(manifest))));
      for (const file of walk(out).filter((file) => COMPRESSED.test(file))) compress(join(out, file));
    },
  };
}

/** Removes copies of the runtime's files that no script refers to; the build of the worker may emit them. */
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
  if (bytes.length < MIN_BYTES) return;
  const compressed = gzipSync(bytes, { level: 9 });
  if (compressed.length < bytes.length) writeFileSync(`${path}.gz`, compressed);
}

function walk(folder: string, root = folder): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? walk(path, root) : [relative(root, path).split(sep).join('/')];
  });
}
