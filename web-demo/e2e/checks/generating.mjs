/** Generation: links, stopping, neighbors, the keyboard. */
import { waitForImages, expect, waitForText, saveImage, visit } from '../page.mjs';

const QUICK = 'steps=4&sampler=euler';

/** The link of an image, of a group or of neighbors reproduces the images. */
export async function sharedLink({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=all&seed=18446744073709551615&index=5&count=3&${QUICK}`);
  const { page } = visitor;
  await waitForImages(page);
  const groupUrl = page.url();
  const second = await saveImage(page, 1);
  expect(second.name === 'Persian_seed18446744073709551615_0006.png' || /_seed18446744073709551615_0006\.png$/.test(second.name), `unexpected file name ${second.name}`);
  await visitor.context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.locator('.image').nth(1).getByRole('button', { name: /^Copy link/ }).click();
  const singleUrl = await page.evaluate(() => navigator.clipboard.readText());
  await page.locator('.image').nth(1).getByRole('button', { name: /^More like this/ }).click();
  await page.waitForFunction(() => document.querySelectorAll('.image').length === 9);
  await waitForImages(page);
  const [same, neighbor] = [await saveImage(page, 0), await saveImage(page, 4)];
  expect(same.bytes.equals(second.bytes), 'the first neighbor differs from the image');
  expect(!neighbor.bytes.equals(second.bytes), 'a neighbor equals the image');
  const neighborsUrl = page.url();
  await page.goBack();
  await waitForImages(page);
  expect(page.url() === groupUrl, `expected ${groupUrl} after going back, found ${page.url()}`);
  expect((await saveImage(page, 1)).bytes.equals(second.bytes), 'going back shows another image');

  for (const [link, at, expected] of [[groupUrl, 1, second], [singleUrl, 0, second], [neighborsUrl, 4, neighbor]]) {
    const other = await visit(browser, link);
    await waitForImages(other.page);
    expect((await saveImage(other.page, at)).bytes.equals(expected.bytes), `another image at ${link}`);
    await other.close();
  }
  await visitor.close();
}

/** Stopping takes effect within one evaluation, and the next generation works. */
export async function stopping({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await waitForImages(page);
  await page.locator('details.more summary').click();
  await page.locator('#steps').fill('5000');
  await page.locator('#generate-button').click();
  await page.waitForFunction(() => document.getElementById('generate-progress').value > 0);
  const start = Date.now();
  await page.locator('#stop').click();
  await waitForText(page, 'generate-status', /^Stopped/, 5000);
  const took = Date.now() - start;
  expect(took < 3000, `stopping took ${took} ms`);
  expect((await page.locator('.image.stopped').count()) === 1, 'the unfinished image is not marked as stopped');
  await page.locator('#steps').fill('2');
  await page.locator('#generate-button').click();
  await waitForImages(page);
  await visitor.close();
  return `stopped after ${took} ms`;
}

/** Generation with the keyboard only. */
export async function keyboard({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await waitForImages(page);
  const press = (key) => page.keyboard.press(key);
  const focused = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.value || document.activeElement?.tagName);
  await press('Tab');
  expect((await focused()) !== 'BODY', 'the first Tab focuses nothing');
  let presses = 0;
  while (!(await page.evaluate(() => document.activeElement?.name === 'breed')) && presses++ < 20) await press('Tab');
  await press('ArrowRight');
  expect((await focused()) === 'Birman', `expected the arrow key to select Birman, found ${await focused()}`);
  while ((await focused()) !== 'seed' && presses++ < 40) await press('Tab');
  await page.keyboard.press('Control+A');
  await page.keyboard.type('12');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  expect(outline !== 'none', 'the focus is not visible');
  await press('Enter');
  await page.waitForFunction(() => /seed=12\b/.test(location.hash) && /breed=Birman/.test(location.hash));
  await waitForImages(page);
  expect(/seed 12/.test(await page.locator('.image .caption').textContent()), 'another image was generated');
  // Arrow keys change the tab.
  await page.locator('#tab-generate').focus();
  await press('ArrowRight');
  expect((await page.locator('#classify').isVisible()) && (await focused()) === 'tab-classify', 'the arrow key does not change the tab');
  await press('Home');
  expect(await page.locator('#generate').isVisible(), 'Home does not select the first tab');
  await visitor.close();
}

/** A field with an invalid value is reset. */
export async function invalidInput({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Dog&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await waitForText(page, 'notice', /breed: tinydit has no class Dog/);
  await page.locator('#seed').fill('a cat');
  await page.locator('#count').fill('1');
  await page.locator('#generate-button').click();
  await page.waitForFunction(() => document.querySelectorAll('.image.done').length === 1);
  expect((await page.locator('#seed').inputValue()) === '1', 'the seed was not reset');
  expect(await page.locator('#notice').isHidden(), 'the error is still visible');
  await page.locator('#seed').fill('99999999999999999999');
  await page.locator('#generate-button').click();
  await waitForImages(page);
  expect((await page.locator('#seed').inputValue()) === '1', 'a seed of more than 64 bits was accepted');
  await visitor.close();
}

/** The page stays responsive during generation. */
export async function responsive({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await waitForImages(page);
  const longest = await page.evaluate(async () => {
    let longest = 0;
    let last = performance.now();
    let isRunning = true;
    const tick = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      if (isRunning) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    document.getElementById('count').value = '4';
    document.getElementById('count').dispatchEvent(new Event('change'));
    document.getElementById('generate-button').click();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    isRunning = false;
    return longest;
  });
  expect(longest < 500, `a frame took ${longest} ms`);
  await visitor.close();
  return `longest frame ${Math.round(longest)} ms`;
}
