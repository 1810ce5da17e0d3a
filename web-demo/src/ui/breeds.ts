/** The breeds to choose from: a picture of each where there is one, its initials before that. */
import { readable } from '../drawing.ts';
import type { Pixels } from '../engine/protocol.ts';
import { ALL } from '../state.ts';
import { show } from './canvas.ts';
import { byId, el } from './dom.ts';

export class Breeds {
  private readonly box = byId('breeds');
  private faces: HTMLElement[] = [];
  private inputs: HTMLInputElement[] = [];

  constructor(private readonly changed: () => void) {}

  /** For another model's classes. What was chosen stays so where it can. */
  fill(classes: readonly string[]): void {
    const before = this.value;
    this.faces = classes.map((name) => el('span', { class: 'face', text: initials(name), attributes: { 'aria-hidden': 'true' } }));
    const all = this.chip(ALL, 'All breeds', el('span', { class: 'face', text: '∗', attributes: { 'aria-hidden': 'true' } }));
    this.inputs = [];
    const chips = classes.map((name, i) => this.chip(name, readable(name), this.faces[i]!));
    this.inputs = [all, ...chips].map((chip) => chip.querySelector('input')!);
    this.box.replaceChildren(all, ...chips);
    this.value = before;
  }

  private chip(value: string, text: string, face: HTMLElement): HTMLLabelElement {
    const input = el('input', { attributes: { type: 'radio', name: 'breed', value } });
    input.addEventListener('change', this.changed);
    return el('label', { class: 'chip' }, input, face, el('span', { class: 'chip-name', text }));
  }

  thumbnail(label: number, picture: Pixels): void {
    const canvas = el('canvas', { attributes: { 'aria-hidden': 'true' } });
    show(canvas, picture, 96);
    this.faces[label]?.replaceChildren(canvas);
  }

  get value(): string {
    return this.inputs.find((input) => input.checked)?.value ?? ALL;
  }

  set value(name: string) {
    const wanted = this.inputs.find((input) => input.value === name) ?? this.inputs[0];
    if (wanted) wanted.checked = true;
  }
}

const initials = (name: string) =>
  readable(name)
    .split(/\s+/)
    .map((word) => Array.from(word)[0] ?? '')
    .join('')
    .slice(0, 2)
    .toUpperCase();
