/** One picture with what can be done with it. */
import type { Pixels } from '../engine/protocol.ts';
import { show } from './canvas.ts';
import { button, el } from './dom.ts';

export interface Actions {
  download(): void;
  copyLink(): Promise<boolean>;
  more(): void;
  classify(): void;
}

export class Picture {
  readonly element: HTMLLIElement;
  pixels: Pixels | null = null;
  private readonly canvas = el('canvas', { attributes: { role: 'img', width: '256', height: '256' } });
  private readonly buttons: HTMLButtonElement[];

  constructor(
    private readonly name: string,
    caption: string,
    actions: Actions,
  ) {
    const copyLink = button('Link', () => {
      void actions.copyLink().then((done) => {
        copyLink.textContent = done ? 'Copied' : 'No';
        setTimeout(() => (copyLink.textContent = 'Link'), 1500);
      });
    });
    // What a button says in short, and what it does.
    const named: [HTMLButtonElement, string][] = [
      [button('More like this', actions.more), 'More like this'],
      [button('PNG', actions.download), 'Save PNG'],
      [copyLink, 'Copy link'],
      [button('Breed?', actions.classify), 'Which breed?'],
    ];
    for (const [each, does] of named) {
      each.setAttribute('aria-label', `${does}: ${caption}`);
      each.title = does;
    }
    this.buttons = named.map(([each]) => each);
    this.canvas.setAttribute('aria-label', `${name}, not drawn yet`);
    const text = el('p', { class: 'caption' }, el('strong', { text: name }), ' ', el('span', { text: caption.slice(name.length).trim() }));
    this.element = el('li', { class: 'picture waiting' }, this.canvas, text, el('div', { class: 'picture-actions' }, ...this.buttons));
    this.enable(false);
  }

  private enable(done: boolean): void {
    for (const each of this.buttons) each.disabled = !done;
  }

  /** What the network sees after a step; `done` from 0 to 1. */
  show(pixels: Pixels, done: number): void {
    show(this.canvas, pixels);
    this.pixels = pixels;
    this.element.classList.remove('waiting');
    if (done < 1) return;
    this.element.classList.add('done');
    this.canvas.setAttribute('aria-label', `A drawn cat: ${this.name}`);
    this.enable(true);
  }

  /** It will not be finished. */
  abandon(): void {
    if (!this.element.classList.contains('done')) this.element.classList.add('abandoned');
  }
}
