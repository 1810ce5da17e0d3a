/** Network faults: offline, broken connections, missing headers, wrong contents. These checks start their own servers. */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { waitForImages, expect, waitForText, text, visit } from '../page.mjs';
import { serve } from '../server.mjs';
import { Skip } from '../skip.mjs';

const START = '#generate?breed=Siamese&seed=3&count=1&steps=2&sampler=euler';

async function withServer(tools, options, check) {
  if (!tools.hasDist) throw new Skip('dist is missing');
  const server = await serve(tools.dist, options);
  try {
    return await check(server);
  } finally {
    await server.close();
  }
}

/** After the first visit, the page, the runtime and both models work offline. */
export const offline = (tools) =>
  withServer(tools, {}, async (server) => {
    const { page, close, errors } = await visit(tools.browser, server.url + START);
    await waitForImages(page);
    await page.getByRole('tab', { name: 'Classify' }).click();
    await waitForText(page, 'model-state', /^resnet18-breeds · /);
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
    await waitForImages(page);
    expect(/tinydit/.test(await text(page, 'model-state')), 'no model is loaded');
    await page.getByRole('tab', { name: 'Classify' }).click();
    await waitForText(page, 'model-state', /^resnet18-breeds · /);
    await close();
    return `${errors.length} console errors`;
  });

/** A download resumes after a broken connection and after a reload. */
export const resumes = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.breakAfter = 6_000_000;
    const { page, close } = await visit(tools.browser, server.url + START);
    const model = () => server.requests.filter(({ path }) => path.endsWith('tinydit.onnx'));
    while (model().filter(({ status, bytes }) => status === 206 && bytes > 6_000_000).length < 1) await page.waitForTimeout(50);
    // During the second request.
    await page.reload();
    server.faults.breakAfter = null;
    await waitForImages(page);
    const all = model();
    expect(all.slice(1).every(({ range, ifRange }) => range && ifRange), `not resumed: ${JSON.stringify(all)}`);
    const starts = all.map(({ range }) => Number(/\d+/.exec(range ?? '0')[0]));
    expect(starts.every((start, i) => i === 0 || start > starts[i - 1]), `requests start at ${starts.join(', ')}`);
    await page.reload();
    await waitForImages(page);
    expect(model().length === all.length, 'a stored model was requested again');
    await close();
    return `requests from byte ${starts.join(', ')}`;
  });

/** Without range support, the download starts over and succeeds. */
export const withoutRanges = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.breakAfter = 9_000_000;
    server.faults.ignoreRanges = true;
    const { page, close } = await visit(tools.browser, server.url + START);
    while (server.requests.filter(({ path }) => path.endsWith('tinydit.onnx')).length < 2) await page.waitForTimeout(50);
    server.faults.breakAfter = null;
    await waitForImages(page);
    await close();
  });

/** A file with a wrong hash is rejected and not stored. */
export const wrongHash = (tools) =>
  withServer(tools, {}, async (server) => {
    server.faults.replace.set('models/tinydit.onnx', Buffer.alloc(statSync(join(tools.dist, 'models/tinydit.onnx')).size, 1));
    const { page, close } = await visit(tools.browser, server.url + START);
    await waitForText(page, 'notice', /^tinydit: sha256: expected [0-9a-f]{64}/);
    const counts = await page.evaluate(async () => {
      const [{ name }] = (await indexedDB.databases()).filter(({ name }) => name.startsWith('tiny-cats'));
      const db = await new Promise((resolve) => (indexedDB.open(name).onsuccess = (event) => resolve(event.target.result)));
      const count = (store) => new Promise((resolve) => (db.transaction(store).objectStore(store).count().onsuccess = (event) => resolve(event.target.result)));
      return [await count('models'), await count('parts')];
    });
    expect(counts[0] === 0 && counts[1] === 0, `stored: ${counts}`);
    server.faults.replace.clear();
    await page.reload();
    await waitForImages(page);
    await close();
  });

/** An invalid list of models gives an error. */
export const invalidList = (tools) =>
  withServer(tools, {}, async (server) => {
    for (const [json, pattern] of [
      ['{"models": [{"name": "x", "kind": "dog"}]}', /^models\.json: models\[0\]\.kind: expected generator or classifier/],
      ['no', /^models\.json: models: expected a list/],
      ['{"models": []}', /^models\.json: expected a generator, found none/],
      ['{"models": [{"name": "x", "kind": "generator", "bytes": 5, "sha256": "aa", "url": "m"}]}', /sha256: expected 64 hexadecimal digits/],
      [`{"models": [{"name": "x", "kind": "generator", "bytes": 5, "sha256": "${'a'.repeat(64)}", "url": "https://example.com/m"}]}`, /url: expected a URL of this page's server/],
    ]) {
      server.faults.replace.set('models.json', Buffer.from(json));
      const { page, close, foreignRequests } = await visit(tools.browser, server.url);
      await waitForText(page, 'notice', pattern);
      expect(foreignRequests.length === 0, `requests to other servers: ${foreignRequests}`);
      await close();
    }
  });

/** Without the headers there is one thread, with a hint; after a reload, the service worker adds them. */
export const withoutIsolation = (tools) =>
  withServer(tools, { isolation: false }, async (server) => {
    const { page, close } = await visit(tools.browser, server.url + START);
    await waitForImages(page);
    expect(/WASM, 1 thread\b/.test(await text(page, 'model-state')), await text(page, 'model-state'));
    await waitForText(page, 'hint-text', /one core.*Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp/);
    await page.locator('#hint-action').click();
    await page.waitForFunction(() => crossOriginIsolated, null, { timeout: 20_000 });
    await waitForImages(page);
    await waitForText(page, 'model-state', /WASM, [2-9]\d* threads|WASM, 1\d threads/);
    await close();
  });

/** In a subfolder without a secure context, generation works with one thread and without a service worker. */
export const insecureSubfolder = (tools) =>
  withServer(tools, { prefix: '/some/folder/' }, async (server) => {
    const { page, close, errors, foreignRequests } = await visit(tools.browser, `http://insecure.test:${server.port}/some/folder/${START}`);
    await waitForImages(page);
    expect(!(await page.evaluate(() => isSecureContext)), 'the context is secure');
    expect(/WASM, 1 thread\b/.test(await text(page, 'model-state')), await text(page, 'model-state'));
    await waitForText(page, 'hint-text', /one core: this page is not served securely/);
    // The browser reports that it ignores the isolation headers without a secure context.
    const otherErrors = errors.filter((text) => !/Cross-Origin-Opener-Policy header has been ignored/.test(text));
    expect(otherErrors.length === 0, otherErrors.join('; '));
    expect(foreignRequests.length === 0, `requests to other servers: ${foreignRequests}`);
    await page.reload();
    await waitForImages(page);
    expect(server.requests.filter(({ path }) => path.endsWith('tinydit.onnx')).length === 1, 'the model was not stored');
    await close();
  });

/** A new version of the page waits until the visitor accepts it. */
export const updates = (tools) =>
  withServer(tools, {}, async (server) => {
    const { page, close } = await visit(tools.browser, server.url + START);
    await waitForImages(page);
    await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
    const script = readFileSync(join(tools.dist, 'sw.js'), 'utf8');
    const html = readFileSync(join(tools.dist, 'index.html'), 'utf8');
    server.faults.replace.set('sw.js', Buffer.from(script.replace(/(version\\":\\")[0-9a-f]{4}/, '$1ffff')));
    server.faults.replace.set('index.html', Buffer.from(html.replace('>Cats, generated', '>Newer cats, generated')));
    await page.reload();
    await waitForText(page, 'hint-text', /A newer version/, 30_000);
    expect(/^Cats, generated/.test(await page.locator('h1').textContent()), 'the new version did not wait');
    await page.locator('#hint-action').click();
    await page.waitForFunction(() => /^Newer cats, generated/.test(document.querySelector('h1')?.textContent ?? ''), null, { timeout: 20_000 });
    await waitForImages(page);
    const shells = await page.evaluate(async () => (await caches.keys()).filter((name) => name.startsWith('tiny-cats-shell-')));
    expect(shells.length === 1 && shells[0].startsWith('tiny-cats-shell-ffff'), `caches: ${shells}`);
    await close();
  });

/** An untrusted card cannot add HTML, and its links are http and https only. */
export const hostileCard = (tools) =>
  withServer(tools, {}, async (server) => {
    const card = '# A <b>card</b>\n\n<img src=x onerror="window.hit=1"><script>window.hit=1</script>\n\n[bad](javascript:window.hit=1) [good](https://example.com/) ![cats](https://example.com/cats.png)\n\n| a | b |\n| --- | --- |\n| `x` | **y** |\n';
    server.faults.replace.set('models/tinydit.md', Buffer.from(card));
    const { page, close, foreignRequests, errors } = await visit(tools.browser, `${server.url}#about`);
    await waitForText(page, 'model-state', /^tinydit · /);
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
    expect(foreignRequests.length === 0 && errors.length === 0, `${foreignRequests} ${errors}`);
    await close();
  });
