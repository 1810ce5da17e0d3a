/**
 * Renders model cards, which are untrusted Markdown, as elements: without HTML and images, and with links to http and https only.
 * Unsupported syntax is shown as text.
 */
import { el } from './dom.ts';

/** Longer cards are cut. */
const MAX_LENGTH = 200_000;

export function renderMarkdown(source: string): DocumentFragment {
  const out = document.createDocumentFragment();
  const lines = source.slice(0, MAX_LENGTH).split(/\r?\n/);
  let at = 0;
  const take = (matches: (line: string) => boolean): string[] => {
    const from = at;
    while (at < lines.length && matches(lines[at]!)) at++;
    return lines.slice(from, at);
  };
  while (at < lines.length) {
    const line = lines[at]!;
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (line.trim() === '') at++;
    else if (line.startsWith('```')) {
      at++;
      const code = take((next) => !next.startsWith('```'));
      at++;
      out.append(el('pre', { attributes: { tabindex: '0' } }, el('code', { text: code.join('\n') })));
    } else if (heading) {
      at++;
      // Cards are below level-3 headings of the page.
      out.append(el(heading[1]!.length === 1 ? 'h4' : 'h5', {}, ...inline(heading[2]!)));
    } else if (line.startsWith('|')) out.append(table(take((next) => next.startsWith('|'))));
    else if (isItem(line)) out.append(el('ul', {}, ...items(take((next) => isItem(next) || /^\s+\S/.test(next)))));
    else out.append(paragraph(take((next) => next.trim() !== '' && !/^(#{1,6}\s|\||```)/.test(next) && !isItem(next))));
  }
  return out;
}

const isItem = (line: string) => /^\s*[-*]\s+/.test(line);

function items(lines: string[]): HTMLLIElement[] {
  const texts: string[] = [];
  for (const line of lines) {
    if (isItem(line)) texts.push(line.replace(/^\s*[-*]\s+/, ''));
    else texts.push(`${texts.pop() ?? ''} ${line.trim()}`);
  }
  return texts.map((text) => el('li', {}, ...inline(text)));
}

function paragraph(lines: string[]): HTMLElement {
  return el('p', {}, ...inline(lines.join(' ')));
}

function table(lines: string[]): HTMLElement {
  const rows = lines.map((line) => line.replace(/^\||\|\s*$/g, '').split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|')));
  const rule = rows.findIndex((cells) => cells.every((cell) => /^:?-+:?$/.test(cell)));
  const [heads, body] = rule > 0 ? [rows.slice(0, rule), rows.slice(rule + 1)] : [[], rows];
  const head = heads.filter((cells) => cells.some((cell) => cell !== ''));
  const line = (cells: string[], tag: 'th' | 'td') => el('tr', {}, ...cells.map((cell) => el(tag, tag === 'th' && cell ? { attributes: { scope: 'col' } } : {}, ...inline(cell))));
  return el('div', { class: 'table', attributes: { tabindex: '0' } }, el('table', {}, el('thead', {}, ...head.map((cells) => line(cells, cells.every(Boolean) ? 'th' : 'td'))), el('tbody', {}, ...body.map((cells) => line(cells, 'td')))));
}

/** Renders code, strong text, links, and the descriptions of images. */
function inline(text: string): (Node | string)[] {
  const out: (Node | string)[] = [];
  const pattern = /`([^`]+)`|\*\*([^*]+)\*\*|!\[([^\]]*)\]\([^)]*\)|\[([^\]]+)\]\(([^)\s]+)\)/g;
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    out.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    const [, code, strong, description, label, url] = match;
    if (code !== undefined) out.push(el('code', { text: code }));
    else if (strong !== undefined) out.push(el('strong', { text: strong }));
    else if (description !== undefined) out.push(el('em', { text: description ? `(image: ${description})` : '' }));
    else out.push(link(label!, url!));
  }
  out.push(text.slice(last));
  return out.filter((part) => part !== '');
}

function link(label: string, url: string): HTMLElement | string {
  if (!/^https?:\/\//i.test(url)) return label;
  return el('a', { text: label, attributes: { href: url, rel: 'noopener noreferrer', target: '_blank' } });
}
