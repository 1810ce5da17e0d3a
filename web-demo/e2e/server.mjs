/** A static server that can omit isolation headers, break connections, ignore ranges, and serve below a path prefix. */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';

const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.css': 'text/css',
  '.json': 'application/json',
  '.webmanifest': 'application/manifest+json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
  '.md': 'text/markdown; charset=utf-8',
};

/**
 * Serves `folder` on a free port. `faults` can change at any time: `breakAfter` closes the connection after that many bytes of a model,
 * `ignoreRanges` disables ranges, `replace` maps paths to other contents. `requests` records the requests.
 */
export async function serve(folder, { isolation = true, prefix = '/', headers = {} } = {}) {
  const faults = { breakAfter: null, ignoreRanges: false, replace: new Map() };
  const requests = [];
  const etags = new Map();
  const etagOf = (path) => {
    if (!etags.has(path)) etags.set(path, `"${createHash('sha256').update(readFileSync(path)).digest('hex').slice(0, 16)}"`);
    return etags.get(path);
  };
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    const entry = { path, range: request.headers.range ?? null, ifRange: request.headers['if-range'] ?? null, status: 0, bytes: 0 };
    requests.push(entry);
    const finish = (status, fields = {}) => {
      entry.status = status;
      response.writeHead(status, { ...fields, ...headers });
      return response;
    };
    if (!path.startsWith(prefix)) return finish(404).end();
    const name = normalize(path.slice(prefix.length)) || 'index.html';
    const file = join(folder, name === '.' ? 'index.html' : name);
    if (name.startsWith('..') || !existsSync(file) || !statSync(file).isFile()) return finish(404).end('not found');
    const fields = { 'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream', 'Cache-Control': 'no-cache' };
    if (isolation) Object.assign(fields, { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' });
    if (faults.replace.has(name)) return finish(200, fields).end(faults.replace.get(name));
    const compressed = `${file}.gz`;
    if (existsSync(compressed) && /\bgzip\b/.test(request.headers['accept-encoding'] ?? '')) {
      finish(200, { ...fields, 'Content-Encoding': 'gzip', Vary: 'Accept-Encoding' });
      return createReadStream(compressed).pipe(response);
    }
    const size = statSync(file).size;
    Object.assign(fields, { ETag: etagOf(file), 'Accept-Ranges': 'bytes' });
    const range = /^bytes=(\d+)-$/.exec(entry.range ?? '');
    const isCurrent = entry.ifRange === null || entry.ifRange === fields.ETag;
    let start = 0;
    if (range && isCurrent && !faults.ignoreRanges) {
      start = Number(range[1]);
      if (start >= size) return finish(416, { 'Content-Range': `bytes */${size}` }).end();
      finish(206, { ...fields, 'Content-Length': size - start, 'Content-Range': `bytes ${start}-${size - 1}/${size}` });
    } else finish(200, { ...fields, 'Content-Length': size });
    const stream = createReadStream(file, { start });
    stream.on('data', (chunk) => {
      entry.bytes += chunk.length;
      if (faults.breakAfter !== null && extname(file) === '.onnx' && entry.bytes > faults.breakAfter) {
        stream.destroy();
        response.destroy();
      }
    });
    return stream.pipe(response);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  return {
    url: `http://localhost:${port}${prefix}`,
    port,
    faults,
    requests,
    close: () =>
      new Promise((resolve) => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  };
}
