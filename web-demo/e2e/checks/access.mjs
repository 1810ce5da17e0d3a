/** Accessibility of each view by the rules of axe, light and dark, on large and small screens; and layout shifts. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { waitForImages, expect, visit } from '../page.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

export async function accessibility({ browser, url }) {
  let rules = 0;
  for (const colorScheme of ['light', 'dark']) {
    for (const viewport of [{ width: 1280, height: 900 }, { width: 360, height: 740 }]) {
      const visitor = await visit(browser, `${url}#generate?breed=Siamese&seed=3&count=2&steps=2&sampler=euler`, { colorScheme, viewport, bypassCSP: true, reducedMotion: 'reduce' });
      const { page } = visitor;
      await waitForImages(page);
      await page.evaluate(axe);
      for (const view of ['generate', 'classify', 'benchmark', 'about']) {
        await page.locator(`#tab-${view}`).click();
        if (view === 'generate') await page.evaluate(() => (document.querySelector('details.more').open = true));
        if (view === 'about') {
          await page.evaluate(() => document.querySelectorAll('#about details').forEach((details) => (details.open = true)));
          await page.waitForFunction(() => document.querySelectorAll('#about .card table').length > 0);
        }
        const { violations, passes } = await page.evaluate(() => window.axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
        rules = Math.max(rules, passes.length);
        const messages = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html.slice(0, 120)} ${node.failureSummary?.split('\n')[1] ?? ''}`).join(' | ')}`);
        expect(violations.length === 0, `${view}, ${colorScheme}, ${viewport.width} px: ${messages.join('\n  ')}`);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        expect(overflow <= 0, `${view} at ${viewport.width} px is ${overflow} px too wide`);
      }
      await visitor.close();
    }
  }
  return `${rules} rules passed`;
}

/** The layout does not shift while the page loads, and there is one headline. */
export async function layoutShift({ browser, url }) {
  const visitor = await visit(browser, url);
  const { page } = visitor;
  await page.addInitScript(() => {
    window.shift = 0;
    window.shifts = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        if (entry.hadRecentInput) continue;
        window.shift += entry.value;
        window.shifts.push(`${entry.value.toFixed(3)}: ${entry.sources.map(({ node }) => node?.id || node?.className || node?.nodeName).join(', ')}`);
      }
    }).observe({ type: 'layout-shift', buffered: true });
  });
  await page.goto(`${url}#generate?breed=Siamese&seed=3&count=4&steps=4`);
  await page.reload();
  await waitForImages(page);
  const { shift, shifts, headlines, lang, title, description } = await page.evaluate(() => ({
    shift: window.shift,
    shifts: window.shifts,
    headlines: document.querySelectorAll('h1').length,
    lang: document.documentElement.lang,
    title: document.title,
    description: document.querySelector('meta[name=description]')?.content,
  }));
  expect(shift < 0.1, `the layout shifts by ${shift}: ${shifts.join('; ')}`);
  expect(headlines === 1 && lang === 'en' && title && description, 'headline, language, title or description is missing');
  await visitor.close();
  return `layout shift ${shift.toFixed(4)}${shifts.length > 0 ? ` (${shifts.join("; ")})` : ""}`;
}
