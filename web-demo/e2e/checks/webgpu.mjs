/** WebGPU, emulated on the CPU if there is no GPU, computes the same images. */
import { chromium } from 'playwright-core';
import { waitForImages, expect, pixels, psnr, saveImage, waitForText, text, visit } from '../page.mjs';
import { Skip } from '../skip.mjs';

const HASH = '#generate?breed=Siamese&seed=7&count=1&steps=4';

export async function webgpu({ url, env }) {
  const browser = await chromium.launch({ executablePath: env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] });
  try {
    const visitor = await visit(browser, url + HASH);
    const { page, errors, foreignRequests } = visitor;
    if (!(await page.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter())))) throw new Skip('this browser has no WebGPU adapter, not even in software');
    await waitForImages(page);
    expect(/WASM/.test(await text(page, 'model-state')), 'a software adapter was used by default');
    const wasm = await pixels(page, (await saveImage(page)).bytes);
    await page.locator('#backend').selectOption('webgpu');
    await waitForText(page, 'model-state', /^tinydit · .*WebGPU/);
    await waitForImages(page);
    expect(/WebGPU/.test(await text(page, 'generate-status')), await text(page, 'generate-status'));
    const gpu = await pixels(page, (await saveImage(page)).bytes);
    const ratio = psnr(wasm, gpu);
    expect(ratio >= 40, `PSNR ${ratio} dB`);
    expect(errors.length === 0, errors.join('; '));
    expect(foreignRequests.length === 0, foreignRequests.join('; '));
    const status = await text(page, 'generate-status');
    await visitor.close();
    return `PSNR ${ratio.toFixed(1)} dB against WASM; ${status}`;
  } finally {
    await browser.close();
  }
}
