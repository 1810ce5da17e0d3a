/**
 * End-to-end checks in a real browser.
 *
 *     npm run build && npm run test:e2e [-- --short] [-- NAME…]
 *
 * BASE_URL       the server to check (default: this script serves the built page)
 * REFERENCE_PNG  the image of `tiny-cats generate --breed Siamese -n 1 --seed 7`, or
 * TINY_CATS      the program, which then generates and classifies for comparison
 * PHOTO          a photograph to classify (default: a synthetic image)
 * SHOTS          the folder for screenshots (shots)
 * CHROMIUM       the browser (/usr/bin/chromium)
 */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { chromium } from 'playwright-core';
import { serve } from './server.mjs';
import { Skip } from './skip.mjs';

const root = resolve(import.meta.dirname, '..');
const dist = resolve(root, 'dist');
const args = process.argv.slice(2);
const short = args.includes('--short');
const names = args.filter((arg) => !arg.startsWith('--'));
const env = process.env;
const base = env.BASE_URL?.replace(/\/?$/, '/');

if (!base && !existsSync(dist)) {
  console.error('dist is missing: run npm run build');
  process.exit(2);
}

const files = short ? ['basics'] : ['basics', 'generating', 'models', 'classify', 'network', 'access', 'webgpu', 'measure', 'shots'];
const checks = [];
for (const file of files) {
  const module = await import(`./checks/${file}.mjs`);
  checks.push(...Object.entries(module).filter(([name]) => names.length === 0 || names.includes(name)));
}

const browser = await chromium.launch({
  executablePath: env.CHROMIUM ?? '/usr/bin/chromium',
  // One check needs a host name that is not a secure context.
  args: ['--no-sandbox', '--host-resolver-rules=MAP insecure.test 127.0.0.1'],
});
const server = base ? null : await serve(dist);
const tools = { browser, url: base ?? server.url, dist, short, hasDist: existsSync(dist), shots: resolve(root, env.SHOTS ?? 'shots'), env };

let failed = 0;
for (const [name, check] of checks) {
  const start = Date.now();
  try {
    const note = await check(tools);
    console.log(`ok    ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)${note ? `: ${note}` : ''}`);
  } catch (error) {
    if (error instanceof Skip) {
      console.log(`skip  ${name}: ${error.message}`);
      continue;
    }
    failed++;
    console.log(`FAIL  ${name}: ${error.stack ?? error}`);
  }
}
await browser.close();
await server?.close();
console.log(`${checks.length} checks, ${failed} failed`);
process.exit(failed > 0 || checks.length === 0 ? 1 : 0);
