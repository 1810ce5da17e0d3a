/** The network: none, a bad one, one without headers, one that lies. These checks need servers of their own. */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { drawn, expect, says, text, visit } from '../page.mjs';
import { serve } from '../server.mjs';
import { Skip } from '../skip.mjs';

const START = '#generate?breed=Siamese&seed=3&count=1&steps=2&sampler=euler';

async function withServer(tools, options, work) {
  if (!tools.hasOwn) throw new Skip('there is no dist to serve');
  const server = await serve(tools.dist, options);
  try {
    return await work(server);
  } finally {
    await server.close();
  }
}

/** After the first visit, everything works with the server gone: the page, the runtime, both models. */
export const offline = (tools) =>
  withServer(tools, {}, async (server) => {
    const { page, close, complaints } = await visit(tools.browser, server.url + START);
    await drawn(page);
    await page.getByRole('tab', { name: 'Classify' }).click();
    await says(page, 'model-state', /^resnet18-breeds · /);
    await page.waitForFunction(async () => {
      const caches = await window.caches.keys();
      const runtime = await window.caches.open('tiny-cats-runtimes').then((cache) => cache.keys());
      return caches.length >= 2 && runtime.some(({ url }) => url.endsWith('.wasm')) && runtime.some(({ url }) => url.endsWith('.mjs'));
    }, null, { timeout: 30_000 });
    await server.close();
    await page.goto(server.url + '#about');
    await page.reload();
    await page.goto(server.url + START);
    await page.reload();
    await drawn(page);
    expect(/tinydit/.test(await text(page, 'model-state')), 'no model');
    await page.getByRole('tab', { name: 'Classify' }).click();
    await says(page, 'model-state', /^resnet18-breeds · /);
    await close();
    return `${complaints.length} complaints in the console`;
  });

/** A connection that breaks is taken up again; after a reload too. */
export const resumes = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.breakAfter = 6_000_000;
    const { page, close } = await visit(tools.browser, server.url + START);
    const model = () => server.requests.filter(({ path }) => path.endsWith('tinydit.onnx'));
    while (model().filter(({ status, bytes }) => status === 206 && bytes > 6_000_000).length < 1) await page.waitForTimeout(50);
    // In the middle of the second part.
    await page.reload();
    server.faults.breakAfter = null;
    await drawn(page);
    const all = model();
    expect(all.slice(1).every(({ range, ifRange }) => range && ifRange), `not resumed: ${JSON.stringify(all)}`);
    const starts = all.map(({ range }) => Number(/\d+/.exec(range ?? '0')[0]));
    expect(starts.every((start, i) => i === 0 || start > starts[i - 1]), `it begins at ${starts.join(', ')}`);
    await page.reload();
    await drawn(page);
    expect(model().length === all.length, 'a model that is kept was asked for again');
    await close();
    return `parts from ${starts.join(', ')}`;
  });

/** A server that ignores ranges sends all of it again, and that is enough. */
export const withoutRanges = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.breakAfter = 9_000_000;
    server.faults.ignoreRanges = true;
    const { page, close } = await visit(tools.browser, server.url + START);
    while (server.requests.filter(({ path }) => path.endsWith('tinydit.onnx')).length < 2) await page.waitForTimeout(50);
    server.faults.breakAfter = null;
    await drawn(page);
    await close();
  });

/** A file with another hash than announced is refused, and nothing of it is kept. */
export const wrongHash = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.replace.set('models/tinydit.onnx', Buffer.alloc(statSync(join(tools.dist, 'models/tinydit.onnx')).size, 1));
    const { page, close } = await visit(tools.browser, server.url + START);
    await says(page, 'notice', /^tinydit: sha256: expected [0-9a-f]{64}/);
    const kept = await page.evaluate(async () => {
      const [{ name }] = (await indexedDB.databases()).filter(({ name }) => name.startsWith('tiny-cats'));
      const db = await new Promise((resolve) => (indexedDB.open(name).onsuccess = (event) => resolve(event.target.result)));
      const count = (store) => new Promise((resolve) => (db.transaction(store).objectStore(store).count().onsuccess = (event) => resolve(event.target.result)));
      return [await count('models'), await count('parts')];
    });
    expect(kept[0] === 0 && kept[1] === 0, `kept: ${kept}`);
    server.faults.replace.clear();
    await page.reload();
    await drawn(page);
    await close();
  });

/** A list of models that is missing or makes no sense is told, and a model can be dropped all the same. */
export const wrongList = (tools) =>
  withServer(tools, {}, async (server) => {
    for (const [json, pattern] of [
      ['{"models": [{"name": "x", "kind": "dog"}]}', /^models\.json: models\[0\]\.kind: expected generator or classifier/],
      ['no', /^models\.json: models: expected a list/],
      ['{"models": []}', /^models\.json: expected a generator, found none/],
      ['{"models": [{"name": "x", "kind": "generator", "bytes": 5, "sha256": "aa", "url": "m"}]}', /sha256: expected 64 hexadecimal digits/],
      [`{"models": [{"name": "x", "kind": "generator", "bytes": 5, "sha256": "${'a'.repeat(64)}", "url": "https://example.com/m"}]}`, /url: expected an address of this page's server/],
    ]) {
      server.faults.replace.set('models.json', Buffer.from(json));
      const { page, close, foreign } = await visit(tools.browser, server.url);
      await says(page, 'notice', pattern);
      expect(foreign.length === 0, `requests to others: ${foreign}`);
      await close();
    }
  });

/** Without the headers there is one thread, which is said with its reason; the next visit has them from the service worker. */
export const withoutIsolation = (tools) =>
  withServer(tools, { isolation: false }, async (server) => {
    const { page, close } = await visit(tools.browser, server.url + START);
    await drawn(page);
    expect(/WASM, 1 thread\b/.test(await text(page, 'model-state')), await text(page, 'model-state'));
    await says(page, 'hint-text', /one core.*Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp/);
    await page.locator('#hint-action').click();
    await page.waitForFunction(() => crossOriginIsolated, null, { timeout: 20_000 });
    await drawn(page);
    await says(page, 'model-state', /WASM, [2-9]\d* threads|WASM, 1\d threads/);
    await close();
  });

/** In any folder, and not in a secure context: no service worker, one thread, but cats. */
export const insecureSubfolder = (tools) =>
  withServer(tools, { prefix: '/some/folder/' }, async (server) => {
    const { page, close, complaints, foreign } = await visit(tools.browser, `http://insecure.test:${server.port}/some/folder/${START}`);
    await drawn(page);
    expect(!(await page.evaluate(() => isSecureContext)), 'the context is secure');
    expect(/WASM, 1 thread\b/.test(await text(page, 'model-state')), await text(page, 'model-state'));
    await says(page, 'hint-text', /one core: this page is not served securely/);
    // The browser itself complains of the isolation headers there, which mean nothing without a secure context.
    const ours = complaints.filter((text) => !/Cross-Origin-Opener-Policy header has been ignored/.test(text));
    expect(ours.length === 0, ours.join('; '));
    expect(foreign.length === 0, `requests to others: ${foreign}`);
    await page.reload();
    await drawn(page);
    expect(server.requests.filter(({ path }) => path.endsWith('tinydit.onnx')).length === 1, 'the model was not kept');
    await close();
  });

/** A new version of the page waits until it is let in, and then is what one sees. */
export const updates = (tools) =>
  withServer(tools, {}, async (server) => {
    const { page, close } = await visit(tools.browser, server.url + START);
    await drawn(page);
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
    const script = readFileSync(join(tools.dist, 'sw.js'), 'utf8');
    const html = readFileSync(join(tools.dist, 'index.html'), 'utf8');
    server.faults.replace.set('sw.js', Buffer.from(script.replace(/(version\\":\\")[0-9a-f]{4}/, '$1ffff')));
    server.faults.replace.set('index.html', Buffer.from(html.replace('>Cats, drawn', '>Newer cats, drawn')));
    await page.reload();
    await says(page, 'hint-text', /A newer version/, 30_000);
    expect(/^Cats, drawn/.test(await page.locator('h1').textContent()), 'the new version did not wait');
    await page.locator('#hint-action').click();
    await page.waitForFunction(() => /^Newer cats, drawn/.test(document.querySelector('h1')?.textContent ?? ''), null, { timeout: 20_000 });
    await drawn(page);
    const shells = await page.evaluate(async () => (await caches.keys()).filter((name) => name.startsWith('tiny-cats-shell-')));
    expect(shells.length === 1 && shells[0].startsWith('tiny-cats-shell-ffff'), `kept: ${shells}`);
    await close();
  });

/** A card from elsewhere is text: its markup does nothing, and its links lead to http and https only. */
export const hostileCard = (tools) =>
  withServer(tools, {}, async (server) => {
    const card = '# A <b>card</b>\n\n<img src=x onerror="window.hit=1"><script>window.hit=1</script>\n\n[bad](javascript:window.hit=1) [good](https://example.com/) ![cats](https://example.com/cats.png)\n\n| a | b |\n| --- | --- |\n| `x` | **y** |\n';
    server.faults.replace.set('models/tinydit.md', Buffer.from(card));
    const { page, close, foreign, complaints } = await visit(tools.browser, `${server.url}#about`);
    await says(page, 'model-state', /^tinydit · /);
    await page.locator('summary', { hasText: 'Model card' }).first().click();
    await page.waitForFunction(() => document.querySelector('.card h4')?.textContent === 'A <b>card</b>');
    const found = await page.evaluate(() => ({
      elements: document.querySelectorAll('.card img, .card script, .card b').length,
      links: [...document.querySelectorAll('.card a')].map((link) => link.href),
      cells: [...document.querySelectorAll('.card td, .card th')].map((cell) => cell.innerHTML),
      hit: window.hit,
    }));
    expect(found.elements === 0 && found.hit === undefined, JSON.stringify(found));
    expect(found.links.join() === 'https://example.com/', `links: ${found.links}`);
    expect(found.cells.join() === 'a,b,<code>x</code>,<strong>y</strong>', `cells: ${found.cells}`);
    expect(foreign.length === 0 && complaints.length === 0, `${foreign} ${complaints}`);
    await close();
  });
