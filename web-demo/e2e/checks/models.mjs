/** Valid and invalid model files of the visitor. */
import { waitForImages, drop, expect, waitForText, text, visit } from '../page.mjs';

const START = '#generate?breed=Siamese&seed=3&count=1&steps=2&sampler=euler';

/** A new model file becomes the current model, with its own classes. */
export async function ownGenerator({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await waitForImages(page);
  await drop(page, [{ name: 'mine.onnx', url: 'models/tinydit.onnx', replace: [['"Siamese"', '"Tortois"']] }]);
  await waitForText(page, 'model-state', /^mine\.onnx · /);
  expect((await page.getByRole('radio', { name: 'Tortois' }).count()) === 1, 'the new class cannot be selected');
  await page.getByRole('radio', { name: 'Tortois' }).check();
  await page.locator('#generate-button').click();
  await page.waitForFunction(() => document.querySelector('.image.done .caption strong')?.textContent === 'Tortois');
  await page.getByRole('tab', { name: 'About' }).click();
  expect(/mine\.onnx/.test(await page.locator('#model-list').textContent()), 'the About view does not list the model');
  await visitor.close();
}

export async function ownClassifier({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await waitForImages(page);
  await drop(page, [{ name: 'breeds.onnx', url: 'models/resnet18-breeds.onnx', replace: [['"Siamese"', '"Tortois"']] }]);
  await page.waitForFunction(() => !document.getElementById('classify').hidden);
  await waitForText(page, 'classify-lead', /Tortois/);
  expect(/breeds\.onnx/.test(await text(page, 'model-state')), 'the model bar shows another model');
  await visitor.close();
}

/** An invalid file gives a one-line error that names it, and the page keeps its model. */
export async function invalidFiles({ browser, url }) {
  const visitor = await visit(browser, url + START);
  const { page } = visitor;
  await waitForImages(page);
  const cases = [
    [{ name: 'cats.txt', type: 'text/plain', text: 'cats are small' }, /^cats\.txt: (format|graph): expected an ONNX model/],
    [{ name: 'empty.onnx' }, /^empty\.onnx: size: expected an ONNX model, found an empty file/],
    [{ name: 'short.onnx', url: 'models/tinydit.onnx', cut: 1_000_000 }, /^short\.onnx: format: expected an ONNX model.*truncated/],
    [{ name: 'weights.pt', text: 'PK\u0003\u0004' }, /^weights\.pt: format: .*zip file/],
    [{ name: 'newer.onnx', url: 'models/tinydit.onnx', replace: [['"format_version":1', '"format_version":7']] }, /^newer\.onnx: tiny-cats\.format_version: expected 1 to 1, found 7/],
    [{ name: 'nameless.onnx', url: 'models/tinydit.onnx', replace: [['tiny-cats\u0012', 'somethin\u0067\u0012']] }, /^nameless\.onnx: metadata_props\.tiny-cats: expected/],
    [{ name: 'broken.onnx', url: 'models/tinydit.onnx', replace: [['Softmax', 'Softmix']] }, /^broken\.onnx: graph: the runtime rejected it/],
  ];
  for (const [file, pattern] of cases) {
    await drop(page, [file]);
    await waitForText(page, 'notice', pattern, 30_000);
    expect(/tinydit/.test(await text(page, 'model-state')), `${file.name}: the previous model is no longer loaded`);
  }
  await page.locator('#generate-button').click();
  await page.waitForFunction(() => document.getElementById('notice').hidden);
  await waitForImages(page);
  await visitor.close();
  return `${cases.length} files`;
}
