/** Helpers for elements. They never parse HTML, so untrusted text stays text. */

type Child = Node | string;

interface Props {
  class?: string;
  text?: string;
  attributes?: Record<string, string>;
  onClick?: (event: MouseEvent) => void;
}

/** Returns the element with this id, which must exist. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element with the id ${id}`);
  return element as T;
}

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (props.class) element.className = props.class;
  if (props.text !== undefined) element.textContent = props.text;
  for (const [name, value] of Object.entries(props.attributes ?? {})) element.setAttribute(name, value);
  if (props.onClick) element.addEventListener('click', props.onClick as EventListener);
  element.append(...children);
  return element;
}

export function button(text: string, onClick: () => void, className = 'secondary'): HTMLButtonElement {
  return el('button', { class: className, text, onClick, attributes: { type: 'button' } });
}

/** Downloads `blob` as a file. */
export function save(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = el('a', { attributes: { href: url, download: name } });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Copies text to the clipboard; true on success. Without a secure context it uses `execCommand`. */
export async function copyText(text: string): Promise<boolean> {
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

/** Loads a setting; null if there is none or the browser forbids storage. */
export function loadSetting(key: string): string | null {
  try {
    return localStorage.getItem(`tiny-cats:${key}`);
  } catch {
    return null;
  }
}

export function saveSetting(key: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(`tiny-cats:${key}`);
    else localStorage.setItem(`tiny-cats:${key}`, value);
  } catch {
    // The setting applies to this visit only.
  }
}
