/** Measurements: the benchmark's view, and memory. */
import { readFile } from 'node:fs/promises';
import { drawn, expect, says, visit } from '../page.mjs';

const save = async (page, id) => {
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator(`#${id}`).click()]);
  return { name: download.suggestedFilename(), text: await readFile(await download.path(), 'utf8') };
};

/** A short benchmark fills its table, and its files hold the same. */
export async function benchmarks({ browser, url }) {
  const visitor = await visit(browser, `${url}#benchmark`);
  const { page } = visitor;
  await says(page, 'model-state', /tinydit/);
  for (const box of await page.locator('#bench-batches input, #bench-steps input').all()) await box.uncheck();
  await page.locator('#bench-batches input[value="1"]').check();
  await page.locator('#bench-steps input[value="10"]').check();
  await page.locator('#repeats').fill('5');
  await page.locator('#bench-start').click();
  await says(page, 'bench-status', /^Done/);
  const rows = await page.$$eval('#bench-table tbody tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
  expect(rows.length >= 2 && rows.every((cells) => cells.length === 9 && Number(cells[5]) > 0 && Number(cells[5]) <= Number(cells[7])), JSON.stringify(rows));
  const json = await save(page, 'bench-json');
  const report = JSON.parse(json.text);
  expect(json.name === 'tiny-cats-benchmark.json' && report.rows.length === rows.length && report.device.Browser, json.text.slice(0, 300));
  const md = await save(page, 'bench-md');
  expect(md.name === 'tiny-cats-benchmark.md' && rows.every((cells) => md.text.includes(`| ${cells.join(' | ')} |`)), md.text);
  // It can be stopped, too.
  await page.locator('#repeats').fill('200');
  await page.locator('#bench-start').click();
  await says(page, 'bench-status', /network evaluation/);
  await page.locator('#bench-stop').click();
  await says(page, 'bench-status', /^Stopped/, 10_000);
  await visitor.close();
  return rows.map((cells) => `${cells[0]}, ${cells[2]} threads: p50 ${cells[5]} ms`).join('; ');
}

/** Memory does not grow from run to run, nor when models are changed back and forth. */
export async function memory({ browser, url }) {
  const visitor = await visit(browser, `${url}#generate?breed=Siamese&seed=3&count=4&steps=4`);
  const { page } = visitor;
  await drawn(page);
  // Thumbnails are drawn once.
  await page.waitForFunction(() => document.querySelectorAll('.face canvas').length >= 12, null, { timeout: 120_000 });
  const used = () => page.evaluate(async () => (await performance.measureUserAgentSpecificMemory()).bytes);
  const draw = async () => {
    await page.locator('#draw').click();
    await page.waitForFunction(() => document.getElementById('pictures').getAttribute('aria-busy') === 'true');
    await drawn(page);
  };
  await draw();
  const before = await used();
  for (let i = 0; i < 10; i++) await draw();
  const after = await used();
  const grown = (after - before) / 1e6;
  expect(grown < 8, `10 drawings of 4 pictures took ${grown.toFixed(1)} MB that were not given back`);
  for (const choice of ['auto', 'wasm', 'auto']) {
    await page.locator('#backend').selectOption(choice);
    await says(page, 'model-state', /^(Starting|Checking|Loading)/, 10_000).catch(() => {});
    await says(page, 'model-state', /^tinydit · /);
    await drawn(page);
  }
  const again = await used();
  expect((again - before) / 1e6 < 30, `changing the backend took ${((again - before) / 1e6).toFixed(1)} MB that were not given back`);
  await visitor.close();
  return `${(before / 1e6).toFixed(0)} MB before, ${(after / 1e6).toFixed(0)} MB after 10 drawings, ${(again / 1e6).toFixed(0)} MB after three changes of backend`;
}
