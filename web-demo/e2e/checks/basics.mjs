/** The short checks: the page loads without errors, and generates the images of the command line. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { waitForImages, expect, pixels, psnr, saveImage, text, visit } from '../page.mjs';
import { Skip } from '../skip.mjs';

export async function loads({ browser, url }) {
  const visitor = await visit(browser, url);
  const { page, errors, foreignRequests } = visitor;
  await page.evaluate(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
  });
  expect(/generated in your browser/.test(await page.locator('h1').textContent()), 'the headline is missing');
  await waitForImages(page);
  for (const tab of ['Classify', 'Benchmark', 'About', 'Generate']) await page.getByRole('tab', { name: tab }).click();
  await page.waitForTimeout(500);
  const violations = await page.evaluate(() => window.violations);
  expect(violations.length === 0, `policy violations: ${violations.join('; ')}`);
  expect(errors.length === 0, `console errors: ${errors.join('; ')}`);
  expect(foreignRequests.length === 0, `requests to other servers: ${foreignRequests.join(', ')}`);
  const state = await text(page, 'generate-status');
  await visitor.close();
  return state;
}

/** The Siamese with seed 7 matches the image of the command line. */
export async function reference({ browser, url, env }) {
  let file = env.REFERENCE_PNG;
  if (!file && env.TINY_CATS) {
    const folder = mkdtempSync(join(tmpdir(), 'tiny-cats-'));
    execFileSync(env.TINY_CATS, ['generate', '--breed', 'Siamese', '-n', '1', '--seed', '7', '-o', `${folder}/`]);
    file = join(folder, 'Siamese_seed7_0000.png');
  }
  if (!file) throw new Skip('neither REFERENCE_PNG nor TINY_CATS is set');
  const visitor = await visit(browser, `${url}#generate?breed=Siamese&seed=7&count=1`);
  const { page } = visitor;
  await page.locator('#backend').selectOption('wasm');
  await waitForImages(page);
  const { name, bytes } = await saveImage(page);
  expect(name === 'Siamese_seed7_0000.png', `expected Siamese_seed7_0000.png, found ${name}`);
  const [ours, theirs] = [await pixels(page, bytes), await pixels(page, readFileSync(file))];
  const ratio = psnr(ours, theirs);
  await visitor.close();
  expect(ratio >= 40, `PSNR ${ratio} dB, expected at least 40`);
  return `PSNR ${ratio.toFixed(1)} dB, ${ours.data.filter((value, i) => value !== theirs.data[i]).length} of ${ours.data.length} values differ`;
}
