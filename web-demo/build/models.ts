/**
 * The models of the page: every ONNX file of `../models/pretrained` with its card and its report, and `models.json`, which lists them.
 * A server may replace `models.json` and `models/` by its own.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import type { Plugin } from 'vite';
import { readMeta } from '../src/engine/meta.ts';
import { readOnnx } from '../src/engine/onnx-file.ts';
import type { ListedModel } from '../src/engine/protocol.ts';

const FOLDER = resolve(import.meta.dirname, '../../models/pretrained');
const TYPES: Record<string, string> = { onnx: 'application/octet-stream', md: 'text/markdown; charset=utf-8', json: 'application/json' };

function listModels(): ListedModel[] {
  const files = readdirSync(FOLDER).filter((name) => name.endsWith('.onnx')).sort();
  const models = files.map((file): ListedModel => {
    const name = basename(file, '.onnx');
    const bytes = readFileSync(join(FOLDER, file));
    const { kind } = readMeta(readOnnx(bytes, file), file);
    const optionalFile = (suffix: string) => (existsSync(join(FOLDER, name + suffix)) ? `models/${name}${suffix}` : undefined);
    const [card, report] = [optionalFile('.md'), optionalFile('.report.json')];
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    return { name, kind, url: `models/${file}`, bytes: bytes.length, sha256, ...(card ? { card } : {}), ...(report ? { report } : {}) };
  });
  // The page uses the first model of each kind.
  return models.sort((a, b) => Number(a.kind === 'classifier') - Number(b.kind === 'classifier'));
}

const toJson = (models: ListedModel[]) => `${JSON.stringify({ models }, null, 2)}\n`;

export function models(): Plugin {
  return {
    name: 'tiny-cats-models',
    generateBundle() {
      const list = listModels();
      this.emitFile({ type: 'asset', fileName: 'models.json', source: toJson(list) });
      for (const path of list.flatMap(({ url, card, report }) => [url, card, report])) {
        if (path) this.emitFile({ type: 'asset', fileName: path, source: readFileSync(join(FOLDER, basename(path))) });
      }
    },
    configureServer(server) {
      server.middlewares.use((request, response, next) => {
        const path = new URL(request.url ?? '/', 'http://localhost').pathname;
        const file = /^\/models\/([\w.-]+)$/.exec(path)?.[1];
        if (path === '/models.json') {
          response.setHeader('Content-Type', TYPES['json']!);
          response.end(toJson(listModels()));
        } else if (file && existsSync(join(FOLDER, file))) {
          response.setHeader('Content-Type', TYPES[file.split('.').at(-1) ?? ''] ?? 'application/octet-stream');
          response.end(readFileSync(join(FOLDER, file)));
        } else next();
      });
    },
  };
}
