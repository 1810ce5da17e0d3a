/** Models of the visitor's own, good and bad. */
import { drawn, drop, expect, says, text, visit } from '../page.mjs';

const START = '#generate?breed=Siamese&seed=3&count=1&steps=2&sampler=euler';

/** A model that the page has never seen becomes the current one, and says itself what its classes are. */
export async function ownGenerator({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await drawn(page);
  await drop(page, [{ name: 'mine.onnx', url: 'models/tinydit.onnx', replace: [['"Siamese"', '"Tortois"']] }]);
  await says(page, 'model-state', /^mine\.onnx · /);
  expect((await page.getByRole('radio', { name: 'Tortois' }).count()) === 1, 'the new class cannot be chosen');
  await page.getByRole('radio', { name: 'Tortois' }).check();
  await page.locator('#draw').click();
  await page.waitForFunction(() => document.querySelector('.picture.done .caption strong')?.textContent === 'Tortois');
  await page.getByRole('tab', { name: 'About' }).click();
  expect(/mine\.onnx/.test(await page.locator('#model-list').textContent()), 'the model is not among those of the page');
  await visitor.close();
}

export async function ownClassifier({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await drawn(page);
  await drop(page, [{ name: 'breeds.onnx', url: 'models/resnet18-breeds.onnx', replace: [['"Siamese"', '"Tortois"']] }]);
  await page.waitForFunction(() => !document.getElementById('classify').hidden);
  await says(page, 'classify-lead', /Tortois/);
  expect(/breeds\.onnx/.test(await text(page, 'model-state')), 'the bar names another model');
  await visitor.close();
}

/** Whatever is wrong with a file is one line that names it, and the page goes on as before. */
export async function wrongFiles({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await drawn(page);
  const cases = [
    [{ name: 'cats.txt', type: 'text/plain', text: 'cats are small' }, /^cats\.txt: (format|graph): expected an ONNX model/],
    [{ name: 'empty.onnx' }, /^empty\.onnx: size: expected an ONNX model, found an empty file/],
    [{ name: 'short.onnx', url: 'models/tinydit.onnx', cut: 1_000_000 }, /^short\.onnx: format: expected an ONNX model.*truncated/],
    [{ name: 'weights.pt', text: 'PK\u0003\u0004' }, /^weights\.pt: format: .*zip file/],
    [{ name: 'newer.onnx', url: 'models/tinydit.onnx', replace: [['"format_version":1', '"format_version":7']] }, /^newer\.onnx: tiny-cats\.format_version: expected 1 to 1, found 7/],
    [{ name: 'nameless.onnx', url: 'models/tinydit.onnx', replace: [['tiny-cats\u0012', 'somethin\u0067\u0012']] }, /^nameless\.onnx: metadata_props\.tiny-cats: expected/],
    [{ name: 'broken.onnx', url: 'models/tinydit.onnx', replace: [['Softmax', 'Softmix']] }, /^broken\.onnx: graph: the runtime refuses it/],
  ];
  for (const [file, pattern] of cases) {
    await drop(page, [file]);
    await says(page, 'notice', pattern, 30_000);
    expect(/tinydit/.test(await text(page, 'model-state')), `${file.name}: the model that worked is gone`);
  }
  await page.locator('#draw').click();
  await page.waitForFunction(() => document.getElementById('notice').hidden);
  await drawn(page);
  await visitor.close();
  return `${cases.length} files`;
}
