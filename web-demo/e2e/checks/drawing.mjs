/** Drawing: sharing, stopping, neighbours, the keyboard. */
import { drawn, expect, says, savePicture, visit } from '../page.mjs';

const QUICK = 'steps=4&sampler=euler';

/** Whoever opens the address of a picture, of one among many or of a neighbour, sees the same. */
export async function sharedAddress({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=all&seed=18446744073709551615&index=5&count=3&${QUICK}`);
  const { page } = visitor;
  await drawn(page);
  const whole = page.url();
  const second = await savePicture(page, 1);
  expect(second.name === 'Persian_seed18446744073709551615_0006.png' || /_seed18446744073709551615_0006\.png$/.test(second.name), `the file is called ${second.name}`);
  await visitor.context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.locator('.picture').nth(1).getByRole('button', { name: /^Copy link/ }).click();
  const alone = await page.evaluate(() => navigator.clipboard.readText());
  await page.locator('.picture').nth(1).getByRole('button', { name: /^More like this/ }).click();
  await page.waitForFunction(() => document.querySelectorAll('.picture').length === 9);
  await drawn(page);
  const [itself, neighbour] = [await savePicture(page, 0), await savePicture(page, 4)];
  expect(itself.bytes.equals(second.bytes), 'the first neighbour is not the picture itself');
  expect(!neighbour.bytes.equals(second.bytes), 'a neighbour is the picture itself');
  const around = page.url();
  await page.goBack();
  await drawn(page);
  expect(page.url() === whole, `back leads to ${page.url()}`);
  expect((await savePicture(page, 1)).bytes.equals(second.bytes), 'going back draws something else');

  for (const [address, at, expected] of [[whole, 1, second], [alone, 0, second], [around, 4, neighbour]]) {
    const other = await visit(browser, address);
    await drawn(other.page);
    expect((await savePicture(other.page, at)).bytes.equals(expected.bytes), `another picture at ${address}`);
    await other.close();
  }
  await visitor.close();
}

/** Stopping takes effect within an evaluation, and the next drawing works. */
export async function stopping({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await drawn(page);
  await page.locator('details.more summary').click();
  await page.locator('#steps').fill('5000');
  await page.locator('#draw').click();
  await page.waitForFunction(() => document.getElementById('draw-progress').value > 0);
  const start = Date.now();
  await page.locator('#stop').click();
  await says(page, 'draw-status', /^Stopped/, 5000);
  const took = Date.now() - start;
  expect(took < 3000, `stopping took ${took} ms`);
  expect((await page.locator('.picture.abandoned').count()) === 1, 'the unfinished picture does not look so');
  await page.locator('#steps').fill('2');
  await page.locator('#draw').click();
  await drawn(page);
  await visitor.close();
  return `stopped after ${took} ms`;
}

/** Drawing, with nothing but keys. */
export async function keyboard({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await drawn(page);
  const press = (key) => page.keyboard.press(key);
  const focused = () => page.evaluate(() => document.activeElement?.id || document.activeElement?.value || document.activeElement?.tagName);
  await press('Tab');
  expect((await focused()) !== 'BODY', 'the first Tab leads nowhere');
  let guard = 0;
  while (!(await page.evaluate(() => document.activeElement?.name === 'breed')) && guard++ < 20) await press('Tab');
  await press('ArrowRight');
  expect((await focused()) === 'Birman', `the arrow chooses ${await focused()}`);
  while ((await focused()) !== 'seed' && guard++ < 40) await press('Tab');
  await page.keyboard.press('Control+A');
  await page.keyboard.type('12');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  expect(outline !== 'none', 'the focus is not visible');
  await press('Enter');
  await page.waitForFunction(() => /seed=12\b/.test(location.hash) && /breed=Birman/.test(location.hash));
  await drawn(page);
  expect(/seed 12/.test(await page.locator('.picture .caption').textContent()), 'another picture was drawn');
  // Tabs move by arrows.
  await page.locator('#tab-generate').focus();
  await press('ArrowRight');
  expect((await page.locator('#classify').isVisible()) && (await focused()) === 'tab-classify', 'the arrow does not change the tab');
  await press('Home');
  expect(await page.locator('#generate').isVisible(), 'Home does not lead to the first tab');
  await visitor.close();
}

/** A field with nonsense in it is as it was. */
export async function nonsense({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Dog&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await says(page, 'notice', /breed: tinydit knows no Dog/);
  await page.locator('#seed').fill('a cat');
  await page.locator('#count').fill('1');
  await page.locator('#draw').click();
  await page.waitForFunction(() => document.querySelectorAll('.picture.done').length === 1);
  expect((await page.locator('#seed').inputValue()) === '1', 'the seed is not what it was');
  expect(await page.locator('#notice').isHidden(), 'the complaint outlives its cause');
  await page.locator('#seed').fill('99999999999999999999');
  await page.locator('#draw').click();
  await drawn(page);
  expect((await page.locator('#seed').inputValue()) === '1', 'a seed of more than 64 bits was taken');
  await visitor.close();
}

/** The page goes on reacting while it draws. */
export async function responsive({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Bengal&seed=1&count=1&${QUICK}`);
  const { page } = visitor;
  await drawn(page);
  const longest = await page.evaluate(async () => {
    let worst = 0;
    let last = performance.now();
    let going = true;
    const tick = () => {
      const now = performance.now();
      worst = Math.max(worst, now - last);
      last = now;
      if (going) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    document.getElementById('count').value = '4';
    document.getElementById('count').dispatchEvent(new Event('change'));
    document.getElementById('draw').click();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    going = false;
    return worst;
  });
  expect(longest < 500, `a frame took ${longest} ms`);
  await visitor.close();
  return `longest frame ${Math.round(longest)} ms`;
}
