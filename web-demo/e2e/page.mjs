/** Helpers for the checks: actions of a visitor, and image comparison. */
import { readFile } from 'node:fs/promises';

const TIMEOUT_MS = 120_000;

/** Opens the page as a new visitor, and collects console errors and requests to other servers. */
export async function visit(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true, permissions: [], ...options });
  const page = await context.newPage();
  const errors = [];
  const foreignRequests = [];
  const origin = new URL(url).origin;
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
  page.on('pageerror', (error) => errors.push(error.message));
  context.on('request', (request) => {
    const requestUrl = request.url();
    if (!requestUrl.startsWith(origin) && !/^(blob|data):/.test(requestUrl)) foreignRequests.push(requestUrl);
  });
  await page.goto(url);
  return { page, context, errors, foreignRequests, close: () => context.close() };
}

/** Waits until all images are finished; throws an error if the page shows one. */
export async function waitForImages(page) {
  await page.waitForFunction(
    () => {
      const images = document.querySelectorAll('.image');
      return (images.length > 0 && document.querySelectorAll('.image.done').length === images.length) || !document.getElementById('notice').hidden;
    },
    null,
    { timeout: TIMEOUT_MS },
  );
  const notice = await page.locator('#notice').textContent();
  if (notice) throw new Error(`the page shows: ${notice}`);
  await page.waitForFunction(() => document.getElementById('images').getAttribute('aria-busy') === 'false');
}

/** Clicks "Save PNG" of image `at`. */
export async function saveImage(page, at = 0) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator('.image').nth(at).getByRole('button', { name: /^Save PNG/ }).click()]);
  return { name: download.suggestedFilename(), bytes: await readFile(await download.path()) };
}

/** Decodes a PNG file in the browser. */
export function pixels(page, bytes) {
  return page.evaluate(async (base64) => {
    const data = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([data]), { colorSpaceConversion: 'none' });
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
    context.drawImage(bitmap, 0, 0);
    return { width: bitmap.width, height: bitmap.height, data: [...context.getImageData(0, 0, bitmap.width, bitmap.height).data] };
  }, bytes.toString('base64'));
}

/** The peak signal-to-noise ratio of two images of the same size, in dB. */
export function psnr(a, b) {
  if (a.width !== b.width || a.height !== b.height) throw new Error(`expected images of the same size, found ${a.width} x ${a.height} and ${b.width} x ${b.height}`);
  const mean = a.data.reduce((sum, value, i) => sum + (value - b.data[i]) ** 2, 0) / a.data.length;
  return mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean);
}

/** Drops files onto the page: `{ name, type, text }`, or `{ name, type, url, replace: [[from, to]] }` for a file that the page fetches. */
export async function drop(page, files) {
  await page.evaluate(async (files) => {
    const transfer = new DataTransfer();
    for (const { name, type = '', text, base64, url, replace, cut } of files) {
      let data = new TextEncoder().encode(text ?? '');
      if (base64 !== undefined) data = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      if (url) data = new Uint8Array(await (await fetch(url)).arrayBuffer());
      for (const [from, to] of replace ?? []) {
        const [search, replacement] = [from, to].map((t) => new TextEncoder().encode(t));
        if (search.length !== replacement.length) throw new Error('expected texts of the same length');
        for (let at = 0; at + search.length <= data.length; at++) if (search.every((byte, i) => data[at + i] === byte)) data.set(replacement, at);
      }
      if (cut) data = data.subarray(0, cut);
      transfer.items.add(new File([data], name, { type }));
    }
    for (const kind of ['dragenter', 'dragover', 'drop']) document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, files);
}

export const text = (page, id) => page.locator(`#${id}`).textContent();

/** Waits until the text of `id` matches. */
export async function waitForText(page, id, pattern, timeout = TIMEOUT_MS) {
  await page.waitForFunction(({ id, source }) => new RegExp(source).test(document.getElementById(id).textContent), { id, source: pattern.source }, { timeout }).catch(async () => {
    throw new Error(`#${id}: expected ${pattern}, found ${await text(page, id)}`);
  });
}

export function expect(condition, message) {
  if (!condition) throw new Error(message);
}
