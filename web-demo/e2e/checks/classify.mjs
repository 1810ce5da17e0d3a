/** Classification of images. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { waitForImages, drop, expect, waitForText, visit } from '../page.mjs';

/** The results, newest first: name, and classes with their probabilities or the error. */
const results = (page) =>
  page.$$eval('.result', (rows) =>
    rows.map((row) => ({
      name: row.querySelector('.result-name').textContent,
      reason: row.querySelector('.reason')?.textContent ?? null,
      candidates: [...row.querySelectorAll('.candidates li')].map((li) => ({ name: li.querySelector('.candidate').textContent, share: parseFloat(li.querySelector('.share').textContent) })),
    })),
  );

async function waitForResults(page, n) {
  await page.waitForFunction((n) => document.querySelectorAll('.result').length >= n && !document.querySelector('.result.waiting'), n, { timeout: 120_000 });
  return results(page);
}

/** Synthetic images as base64: one with transparent parts, and the same on white as PNG and JPEG. */
const synthetic = (page) =>
  page.evaluate(async () => {
    const canvas = new OffscreenCanvas(300, 200);
    const context = canvas.getContext('2d');
    const paint = () => {
      context.fillStyle = '#a87f52';
      context.beginPath();
      context.ellipse(140, 110, 90, 70, 0, 0, 7);
      context.fill();
      context.fillStyle = 'rgba(40, 90, 200, 0.5)';
      context.fillRect(150, 20, 90, 60);
    };
    const base64 = async (type) => {
      const bytes = new Uint8Array(await (await canvas.convertToBlob({ type, quality: 0.95 })).arrayBuffer());
      let text = '';
      for (const byte of bytes) text += String.fromCharCode(byte);
      return btoa(text);
    };
    paint();
    const transparent = await base64('image/png');
    context.globalCompositeOperation = 'destination-over';
    context.fillStyle = '#fff';
    context.fillRect(0, 0, 300, 200);
    return { transparent, white: await base64('image/png'), jpeg: await base64('image/jpeg') };
  });

/** Several files at once: images get three classes, other files an error, and transparent parts count as white. */
export async function severalFiles({ browser, url }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  const { transparent, white, jpeg } = await synthetic(page);
  await drop(page, [
    { name: 'transparent.png', type: 'image/png', base64: transparent },
    { name: 'white.png', type: 'image/png', base64: white },
    { name: 'text.png', type: 'image/png', text: 'not an image at all' },
    { name: 'empty.jpg', type: 'image/jpeg' },
    { name: 'broken.png', type: 'image/png', base64: white.slice(0, 400) },
    { name: 'jpeg.jpg', type: 'image/jpeg', base64: jpeg },
  ]);
  const found = await waitForResults(page, 6);
  const byName = (name) => found.find((row) => row.name === name);
  for (const name of ['transparent.png', 'white.png', 'jpeg.jpg']) {
    expect(byName(name).candidates.length === 3, `${name}: ${JSON.stringify(byName(name))}`);
    const [a, b, c] = byName(name).candidates.map((candidate) => candidate.share);
    expect(a >= b && b >= c && a + b + c <= 100.1, `${name}: shares ${a}, ${b}, ${c}`);
  }
  for (let i = 0; i < 3; i++) {
    const [a, b] = [byName('transparent.png').candidates[i], byName('white.png').candidates[i]];
    expect(a.name === b.name && Math.abs(a.share - b.share) <= 0.3, `on white: ${JSON.stringify([a, b])}`);
  }
  expect(/not an image/.test(byName('text.png').reason), byName('text.png').reason);
  expect(/an empty file/.test(byName('empty.jpg').reason), byName('empty.jpg').reason);
  expect(/a broken PNG file/.test(byName('broken.png').reason), byName('broken.png').reason);
  await visitor.close();
  return JSON.stringify(byName('white.png').candidates[0]);
}

/** The probabilities match those of the command line, if TINY_CATS is set. */
export async function sameAsCommandLine({ browser, url, env }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  let file = env.PHOTO;
  if (!file) {
    file = join(mkdtempSync(join(tmpdir(), 'tiny-cats-')), 'synthetic.png');
    writeFileSync(file, Buffer.from((await synthetic(page)).white, 'base64'));
  }
  await page.locator('#image-files').setInputFiles(file);
  const [row] = await waitForResults(page, 1);
  expect(row.name === basename(file) && row.candidates.length === 3, JSON.stringify(row));
  await visitor.close();
  if (!env.TINY_CATS) return `${JSON.stringify(row.candidates[0])}, not compared: TINY_CATS is not set`;
  const output = execFileSync(env.TINY_CATS, ['classify', file], { encoding: 'utf8' });
  for (const { name, share } of row.candidates) {
    const line = new RegExp(`${name.replaceAll(' ', '[ _]')}\\s+(\\d+(?:\\.\\d+)?) ?%`).exec(output);
    expect(line, `the command line does not list ${name}: ${output}`);
    expect(Math.abs(Number(line[1]) - share) <= 0.3, `${name}: expected ${line[1]} %, found ${share} %`);
  }
  return row.candidates.map(({ name, share }) => `${name} ${share} %`).join(', ');
}

/** An image with an EXIF rotation is classified upright. */
export async function orientation({ browser, url }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  const [upright, turned] = await page.evaluate(async () => {
    const encode = async (rotate) => {
      const canvas = rotate ? new OffscreenCanvas(160, 240) : new OffscreenCanvas(240, 160);
      const context = canvas.getContext('2d');
      if (rotate) {
        // As stored by a rotated camera: EXIF orientation 6 rotates it by 90 degrees clockwise.
        context.translate(0, 240);
        context.rotate(-Math.PI / 2);
      }
      const gradient = context.createLinearGradient(0, 0, 240, 0);
      gradient.addColorStop(0, '#402010');
      gradient.addColorStop(1, '#e0d0b0');
      context.fillStyle = gradient;
      context.fillRect(0, 0, 240, 160);
      context.fillStyle = '#205080';
      context.fillRect(20, 20, 60, 30);
      return new Uint8Array(await (await canvas.convertToBlob({ type: 'image/jpeg', quality: 1 })).arrayBuffer());
    };
    const exif = [0xff, 0xe1, 0, 34, 0x45, 0x78, 0x69, 0x66, 0, 0, 0x4d, 0x4d, 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
    const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
    const stored = await encode(true);
    return [base64(await encode(false)), base64([...stored.subarray(0, 2), ...exif, ...stored.subarray(2)])];
  });
  await drop(page, [{ name: 'upright.jpg', type: 'image/jpeg', base64: upright }, { name: 'turned.jpg', type: 'image/jpeg', base64: turned }]);
  const found = await waitForResults(page, 2);
  const [a, b] = found.map((row) => row.candidates);
  a.forEach((candidate, i) => expect(candidate.name === b[i].name && Math.abs(candidate.share - b[i].share) < 2, `${JSON.stringify(a)} and ${JSON.stringify(b)}`));
  await visitor.close();
}

/** A generated image can be classified with a button, and an image can be pasted. */
export async function generatedAndPasted({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Sphynx&seed=1&count=1`);
  const { page } = visitor;
  await waitForImages(page);
  await page.getByRole('button', { name: /^Which breed/ }).click();
  const [row] = await waitForResults(page, 1);
  expect(/^Sphynx_seed1_0000/.test(row.name) && row.candidates.length === 3, JSON.stringify(row));
  await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(64, 64);
    canvas.getContext('2d').fillRect(0, 0, 32, 64);
    const transfer = new DataTransfer();
    transfer.items.add(new File([await canvas.convertToBlob()], 'image.png', { type: 'image/png' }));
    document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }));
  });
  const both = await waitForResults(page, 2);
  expect(both[0].candidates.length === 3, JSON.stringify(both[0]));
  await waitForText(page, 'classify-status', /1 image in/);
  await page.locator('#clear').click();
  expect((await page.locator('.result').count()) === 0, 'Clear does not remove all results');
  await visitor.close();
  return `a generated Sphynx is classified as: ${row.candidates.map(({ name, share }) => `${name} ${share} %`).join(', ')}`;
}
