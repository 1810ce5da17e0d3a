/** The classifier. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { drawn, drop, expect, says, visit } from '../page.mjs';

/** The verdicts, newest first: name, classes with their shares, or the reason. */
const verdicts = (page) =>
  page.$$eval('.verdict', (rows) =>
    rows.map((row) => ({
      name: row.querySelector('.verdict-name').textContent,
      reason: row.querySelector('.reason')?.textContent ?? null,
      candidates: [...row.querySelectorAll('.candidates li')].map((li) => ({ name: li.querySelector('.candidate').textContent, share: parseFloat(li.querySelector('.share').textContent) })),
    })),
  );

async function settled(page, n) {
  await page.waitForFunction((n) => document.querySelectorAll('.verdict').length >= n && !document.querySelector('.verdict.waiting'), n, { timeout: 120_000 });
  return verdicts(page);
}

/** Pictures that the browser draws: a plain one, one with transparent parts, the same on white, as base64. */
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

/** Several at once: good ones get three classes, bad ones a reason, and transparent parts count as white. */
export async function classifies({ browser, url }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  const { transparent, white, jpeg } = await synthetic(page);
  await drop(page, [
    { name: 'transparent.png', type: 'image/png', base64: transparent },
    { name: 'white.png', type: 'image/png', base64: white },
    { name: 'text.png', type: 'image/png', text: 'not a picture at all' },
    { name: 'empty.jpg', type: 'image/jpeg' },
    { name: 'broken.png', type: 'image/png', base64: white.slice(0, 400) },
    { name: 'jpeg.jpg', type: 'image/jpeg', base64: jpeg },
  ]);
  const found = await settled(page, 6);
  const by = (name) => found.find((row) => row.name === name);
  for (const name of ['transparent.png', 'white.png', 'jpeg.jpg']) {
    expect(by(name).candidates.length === 3, `${name}: ${JSON.stringify(by(name))}`);
    const [a, b, c] = by(name).candidates.map((candidate) => candidate.share);
    expect(a >= b && b >= c && a + b + c <= 100.1, `${name}: shares ${a}, ${b}, ${c}`);
  }
  for (let i = 0; i < 3; i++) {
    const [a, b] = [by('transparent.png').candidates[i], by('white.png').candidates[i]];
    expect(a.name === b.name && Math.abs(a.share - b.share) <= 0.3, `on white: ${JSON.stringify([a, b])}`);
  }
  expect(/not a picture/.test(by('text.png').reason), by('text.png').reason);
  expect(/an empty file/.test(by('empty.jpg').reason), by('empty.jpg').reason);
  expect(/a broken PNG file/.test(by('broken.png').reason), by('broken.png').reason);
  await visitor.close();
  return JSON.stringify(by('white.png').candidates[0]);
}

/** The same shares as the command line, where there is one. */
export async function sameAsCommandLine({ browser, url, env }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  let file = env.PHOTO;
  if (!file) {
    file = join(mkdtempSync(join(tmpdir(), 'tiny-cats-')), 'drawn.png');
    writeFileSync(file, Buffer.from((await synthetic(page)).white, 'base64'));
  }
  await page.locator('#picture-files').setInputFiles(file);
  const [row] = await settled(page, 1);
  expect(row.name === basename(file) && row.candidates.length === 3, JSON.stringify(row));
  await visitor.close();
  if (!env.TINY_CATS) return `${JSON.stringify(row.candidates[0])}, not compared: TINY_CATS is not given`;
  const printed = execFileSync(env.TINY_CATS, ['classify', file], { encoding: 'utf8' });
  for (const { name, share } of row.candidates) {
    const line = new RegExp(`${name.replaceAll(' ', '[ _]')}\\s+(\\d+(?:\\.\\d+)?) ?%`).exec(printed);
    expect(line, `the command line says nothing of ${name}: ${printed}`);
    expect(Math.abs(Number(line[1]) - share) <= 0.3, `${name}: ${share} % here, ${line[1]} % there`);
  }
  return row.candidates.map(({ name, share }) => `${name} ${share} %`).join(', ');
}

/** EXIF says that a picture lies on its side: it is classified upright. */
export async function orientation({ browser, url }) {
  const visitor = await visit(browser, `${url}#classify`);
  const { page } = visitor;
  const [upright, turned] = await page.evaluate(async () => {
    const encode = async (rotate) => {
      const canvas = rotate ? new OffscreenCanvas(160, 240) : new OffscreenCanvas(240, 160);
      const context = canvas.getContext('2d');
      if (rotate) {
        // As a camera held on its side stores it: what EXIF 6 turns back by 90 degrees clockwise.
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
  const found = await settled(page, 2);
  const [a, b] = found.map((row) => row.candidates);
  a.forEach((candidate, i) => expect(candidate.name === b[i].name && Math.abs(candidate.share - b[i].share) < 2, `${JSON.stringify(a)} and ${JSON.stringify(b)}`));
  await visitor.close();
}

/** A drawn cat goes to the classifier by a button, and a pasted picture by the clipboard. */
export async function drawnAndPasted({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Sphynx&seed=1&count=1`);
  const { page } = visitor;
  await drawn(page);
  await page.getByRole('button', { name: /^Which breed/ }).click();
  const [row] = await settled(page, 1);
  expect(/^Sphynx_seed1_0000/.test(row.name) && row.candidates.length === 3, JSON.stringify(row));
  await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(64, 64);
    canvas.getContext('2d').fillRect(0, 0, 32, 64);
    const transfer = new DataTransfer();
    transfer.items.add(new File([await canvas.convertToBlob()], 'image.png', { type: 'image/png' }));
    document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }));
  });
  const both = await settled(page, 2);
  expect(both[0].candidates.length === 3, JSON.stringify(both[0]));
  await says(page, 'classify-status', /1 picture in/);
  await page.locator('#clear').click();
  expect((await page.locator('.verdict').count()) === 0, 'clearing leaves something');
  await visitor.close();
  return `a drawn Sphynx is taken for: ${row.candidates.map(({ name, share }) => `${name} ${share} %`).join(', ')}`;
}
