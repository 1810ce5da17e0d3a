/** The benchmark view, and memory use. */
import { readFile } from 'node:fs/promises';
import { waitForImages, expect, waitForText, visit } from '../page.mjs';

const save = async (page, id) => {
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator(`#${id}`).click()]);
  return { name: download.suggestedFilename(), text: await readFile(await download.path(), 'utf8') };
};

/** A short benchmark fills the table, and the saved files match it. */
export async function benchmarks({ browser, url }) {
  const visitor = await visit(browser, `${url}#benchmark`);
  const { page } = visitor;
  await waitForText(page, 'model-state', /tinydit/);
  for (const box of await page.locator('#bench-batches input, #bench-steps input').all()) await box.uncheck();
  await page.locator('#bench-batches input[value="1"]').check();
  await page.locator('#bench-steps input[value="10"]').check();
  await page.locator('#repeats').fill('5');
  await page.locator('#bench-start').click();
  await waitForText(page, 'bench-status', /^Done/);
  const rows = await page.$$eval('#bench-table tbody tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
  expect(rows.length >= 2 && rows.every((cells) => cells.length === 9 && Number(cells[5]) > 0 && Number(cells[5]) <= Number(cells[7])), JSON.stringify(rows));
  const json = await save(page, 'bench-json');
  const report = JSON.parse(json.text);
  expect(json.name === 'tiny-cats-benchmark.json' && report.rows.length === rows.length && report.device.Browser, json.text.slice(0, 300));
  const md = await save(page, 'bench-md');
  expect(md.name === 'tiny-cats-benchmark.md' && rows.every((cells) => md.text.includes(`| ${cells.join(' | ')} |`)), md.text);
  // A benchmark can be stopped.
  await page.locator('#repeats').fill('200');
  await page.locator('#bench-start').click();
  await waitForText(page, 'bench-status', /network evaluation/);
  await page.locator('#bench-stop').click();
  await waitForText(page, 'bench-status', /^Stopped/, 10_000);
  await visitor.close();
  return rows.map((cells) => `${cells[0]}, ${cells[2]} threads: p50 ${cells[5]} ms`).join('; ');
}

/** Memory does not grow over repeated generations or changes of the backend. */
export async function memory({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Siamese&seed=3&count=4&steps=4`);
  const { page } = visitor;
  await waitForImages(page);
  // Thumbnails are generated once.
  await page.waitForFunction(() => document.querySelectorAll('.face canvas').length >= 12, null, { timeout: 120_000 });
  const used = () => page.evaluate(async () => (await performance.measureUserAgentSpecificMemory()).bytes);
  const generate = async () => {
    await page.locator('#generate-button').click();
    await page.waitForFunction(() => document.getElementById('images').getAttribute('aria-busy') === 'true');
    await waitForImages(page);
  };
  await generate();
  const before = await used();
  for (let i = 0; i < 10; i++) await generate();
  const after = await used();
  const grown = (after - before) / 1e6;
  expect(grown < 8, `memory grew by ${grown.toFixed(1)} MB in 10 generations of 4 images`);
  for (const choice of ['auto', 'wasm', 'auto']) {
    await page.locator('#backend').selectOption(choice);
    await waitForText(page, 'model-state', /^(Starting|Checking|Loading)/, 10_000).catch(() => {});
    await waitForText(page, 'model-state', /^tinydit · /);
    await waitForImages(page);
  }
  const again = await used();
  expect((again - before) / 1e6 < 30, `memory grew by ${((again - before) / 1e6).toFixed(1)} MB after changes of the backend`);
  await visitor.close();
  return `${(before / 1e6).toFixed(0)} MB before, ${(after / 1e6).toFixed(0)} MB after 10 generations, ${(again / 1e6).toFixed(0)} MB after three changes of the backend`;
}
