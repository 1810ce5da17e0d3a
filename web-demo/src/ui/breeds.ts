/** The choice of breeds, each with its thumbnail, or its initials until there is one. */
import { displayName } from '../generation.ts';
import type { Pixels } from '../engine/protocol.ts';
import { ALL } from '../state.ts';
import { drawPixels } from './canvas.ts';
import { byId, el } from './dom.ts';

export class Breeds {
  private readonly box = byId('breeds');
  private faces: HTMLElement[] = [];
  private inputs: HTMLInputElement[] = [];

  constructor(private readonly onChange: () => void) {}

  /** Shows the classes of a model, and keeps the selection if possible. */
  fill(classes: readonly string[]): void {
    const selected = this.value;
    this.faces = classes.map((name) => el('span', { class: 'face', text: initials(name), attributes: { 'aria-hidden': 'true' } }));
    const all = this.chip(ALL, 'All breeds', el('span', { class: 'face', text: '∗', attributes: { 'aria-hidden': 'true' } }));
    this.inputs = [];
    const chips = classes.map((name, i) => this.chip(name, displayName(name), this.faces[i]!));
    this.inputs = [all, ...chips].map((chip) => chip.querySelector('input')!);
    this.box.replaceChildren(all, ...chips);
    this.value = selected;
  }

  private chip(value: string, text: string, face: HTMLElement): HTMLLabelElement {
    const input = el('input', { attributes: { type: 'radio', name: 'breed', value } });
    input.addEventListener('change', this.onChange);
    return el('label', { class: 'chip' }, input, face, el('span', { class: 'chip-name', text }));
  }

  showThumbnail(label: number, image: Pixels): void {
    const canvas = el('canvas', { attributes: { 'aria-hidden': 'true' } });
    drawPixels(canvas, image, 96);
    this.faces[label]?.replaceChildren(canvas);
  }

  get value(): string {
    return this.inputs.find((input) => input.checked)?.value ?? ALL;
  }

  set value(name: string) {
    const input = this.inputs.find((input) => input.value === name) ?? this.inputs[0];
    if (input) input.checked = true;
  }
}

const initials = (name: string) =>
  displayName(name)
    .split(/\s+/)
    .map((word) => Array.from(word)[0] ?? '')
    .join('')
    .slice(0, 2)
    .toUpperCase();
