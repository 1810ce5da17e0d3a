/** Elements by their id and new ones, without strings of HTML: foreign text is only ever text. */

type Child = Node | string;

interface Props {
  class?: string;
  text?: string;
  attributes?: Record<string, string>;
  click?: (event: MouseEvent) => void;
}

/** The element with this id, which must be of this kind. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element called ${id}`);
  return found as T;
}

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (props.class) element.className = props.class;
  if (props.text !== undefined) element.textContent = props.text;
  for (const [name, value] of Object.entries(props.attributes ?? {})) element.setAttribute(name, value);
  if (props.click) element.addEventListener('click', props.click as EventListener);
  element.append(...children);
  return element;
}

export function button(text: string, click: () => void, look = 'quiet'): HTMLButtonElement {
  return el('button', { class: look, text, click, attributes: { type: 'button' } });
}

/** Offers `blob` as a file. */
export function save(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = el('a', { attributes: { href: url, download: name } });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Copies a text; says whether it worked. Without a secure context only the old way is there. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el('textarea', { class: 'hidden', attributes: { 'aria-hidden': 'true', tabindex: '-1' } });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** What was remembered under `key`, or null; browsers may forbid remembering. */
export function recall(key: string): string | null {
  try {
    return localStorage.getItem(`tiny-cats:${key}`);
  } catch {
    return null;
  }
}

export function remember(key: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(`tiny-cats:${key}`);
    else localStorage.setItem(`tiny-cats:${key}`, value);
  } catch {
    // It will be asked again.
  }
}
