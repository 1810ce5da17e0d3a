/** WebGPU, by an adapter that the processor stands for where there is no card: slow, but it computes the same. */
import { chromium } from 'playwright-core';
import { drawn, expect, pixels, psnr, savePicture, says, text, visit } from '../page.mjs';
import { Skip } from '../skip.mjs';

const PICTURE = '#generate?breed=Siamese&seed=7&count=1&steps=4';

export async function webgpu({ url, env }) {
  const browser = await chromium.launch({ executablePath: env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] });
  try {
    const visitor = await visit(browser, url + PICTURE);
    const { page, complaints, foreign } = visitor;
    if (!(await page.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter())))) throw new Skip('this browser has no adapter, not even of software');
    await drawn(page);
    expect(/WASM/.test(await text(page, 'model-state')), 'an adapter of software is taken unasked');
    const wasm = await pixels(page, (await savePicture(page)).bytes);
    await page.locator('#backend').selectOption('webgpu');
    await says(page, 'model-state', /^tinydit · .*WebGPU/);
    await drawn(page);
    expect(/WebGPU/.test(await text(page, 'draw-status')), await text(page, 'draw-status'));
    const gpu = await pixels(page, (await savePicture(page)).bytes);
    const ratio = psnr(wasm, gpu);
    expect(ratio >= 40, `PSNR ${ratio} dB`);
    expect(complaints.length === 0, complaints.join('; '));
    expect(foreign.length === 0, foreign.join('; '));
    const status = await text(page, 'draw-status');
    await visitor.close();
    return `PSNR ${ratio.toFixed(1)} dB against WASM; ${status}`;
  } finally {
    await browser.close();
  }
}
