/** What the checks do with the page, in the visitor's terms. */
import { readFile } from 'node:fs/promises';

const PATIENCE = 120_000;

/** A new visitor's page, whose complaints are collected: errors, refused resources, and requests to other servers. */
export async function visit(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true, permissions: [], ...options });
  const page = await context.newPage();
  const complaints = [];
  const foreign = [];
  const origin = new URL(url).origin;
  page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(error.message));
  context.on('request', (request) => {
    const address = request.url();
    if (!address.startsWith(origin) && !/^(blob|data):/.test(address)) foreign.push(address);
  });
  await page.goto(url);
  return { page, context, complaints, foreign, close: () => context.close() };
}

/** Waits until all pictures are drawn, or the page says what is wrong. */
export async function drawn(page) {
  await page.waitForFunction(
    () => {
      const pictures = document.querySelectorAll('.picture');
      return (pictures.length > 0 && document.querySelectorAll('.picture.done').length === pictures.length) || !document.getElementById('notice').hidden;
    },
    null,
    { timeout: PATIENCE },
  );
  const notice = await page.locator('#notice').textContent();
  if (notice) throw new Error(`the page says: ${notice}`);
  await page.waitForFunction(() => document.getElementById('pictures').getAttribute('aria-busy') === 'false');
}

/** Presses "Save PNG" of picture `at`. */
export async function savePicture(page, at = 0) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator('.picture').nth(at).getByRole('button', { name: /^Save PNG/ }).click()]);
  return { name: download.suggestedFilename(), bytes: await readFile(await download.path()) };
}

/** The pixels of a PNG file, by the browser. */
export function pixels(page, bytes) {
  return page.evaluate(async (base64) => {
    const data = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([data]), { colorSpaceConversion: 'none' });
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
    context.drawImage(bitmap, 0, 0);
    return { width: bitmap.width, height: bitmap.height, data: [...context.getImageData(0, 0, bitmap.width, bitmap.height).data] };
  }, bytes.toString('base64'));
}

/** Peak signal to noise ratio of two pictures of the same size, in decibels. */
export function psnr(a, b) {
  if (a.width !== b.width || a.height !== b.height) throw new Error(`${a.width} x ${a.height} and ${b.width} x ${b.height} pixels`);
  const mean = a.data.reduce((sum, value, i) => sum + (value - b.data[i]) ** 2, 0) / a.data.length;
  return mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean);
}

/** Drops files onto the page. Each is `{ name, type, text }`, or `{ name, type, url, replace: [from, to] }` for one that the page fetches. */
export async function drop(page, files) {
  await page.evaluate(async (files) => {
    const transfer = new DataTransfer();
    for (const { name, type = '', text, base64, url, replace, cut } of files) {
      let data = new TextEncoder().encode(text ?? '');
      if (base64 !== undefined) data = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      if (url) data = new Uint8Array(await (await fetch(url)).arrayBuffer());
      for (const [from, to] of replace ?? []) {
        const [find, put] = [from, to].map((t) => new TextEncoder().encode(t));
        if (find.length !== put.length) throw new Error('texts of the same length only');
        for (let at = 0; at + find.length <= data.length; at++) if (find.every((byte, i) => data[at + i] === byte)) data.set(put, at);
      }
      if (cut) data = data.subarray(0, cut);
      transfer.items.add(new File([data], name, { type }));
    }
    for (const kind of ['dragenter', 'dragover', 'drop']) document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, files);
}

export const text = (page, id) => page.locator(`#${id}`).textContent();

/** Waits until the text of `id` matches. */
export async function says(page, id, pattern, timeout = PATIENCE) {
  await page.waitForFunction(({ id, source }) => new RegExp(source).test(document.getElementById(id).textContent), { id, source: pattern.source }, { timeout }).catch(async () => {
    throw new Error(`#${id} never says ${pattern}, but: ${await text(page, id)}`);
  });
}

export function expect(condition, message) {
  if (!condition) throw new Error(message);
}
