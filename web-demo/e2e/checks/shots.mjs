/** Screenshots of each view, light and dark, on large and small screens. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { waitForImages, visit } from '../page.mjs';

export async function screenshots({ browser, url, shots }) {
  mkdirSync(shots, { recursive: true });
  let count = 0;
  for (const [device, viewport] of [['desktop', { width: 1280, height: 860 }], ['phone', { width: 360, height: 780 }]]) {
    for (const colorScheme of ['light', 'dark']) {
      const visitor = await visit(browser, `${url}#generate?breed=all&seed=5&count=6`, { viewport, colorScheme, deviceScaleFactor: device === 'phone' ? 2 : 1 });
      const { page } = visitor;
      await waitForImages(page);
      await page.waitForFunction(() => document.querySelectorAll('.face canvas').length >= 12, null, { timeout: 120_000 });
      const shoot = async (name) => {
        await page.mouse.move(0, 0);
        await page.screenshot({ path: join(shots, `${device}-${colorScheme}-${name}.png`), fullPage: true });
        count++;
      };
      await shoot('generate');
      for (const at of [1, 4]) {
        await page.locator('#tab-generate').click();
        await page.locator('.image').nth(at).getByRole('button', { name: /^Which breed/ }).click();
        await page.waitForFunction(() => !document.querySelector('.result.waiting'));
      }
      await shoot('classify');
      await page.locator('#tab-benchmark').click();
      await page.waitForTimeout(300);
      await shoot('benchmark');
      await page.locator('#tab-about').click();
      await page.evaluate(() => [...document.querySelectorAll('#about details')].slice(1, 3).forEach((details) => (details.open = true)));
      await page.waitForTimeout(500);
      await shoot('about');
      await visitor.close();
    }
  }
  return `${count} screenshots in ${shots}`;
}
