/** An image with its actions. */
import type { Pixels } from '../engine/protocol.ts';
import { drawPixels } from './canvas.ts';
import { button, el } from './dom.ts';

export interface Actions {
  download(): void;
  copyLink(): Promise<boolean>;
  more(): void;
  classify(): void;
}

export class ImageCard {
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
      void actions.copyLink().then((isCopied) => {
        copyLink.textContent = isCopied ? 'Copied' : 'Failed';
        setTimeout(() => (copyLink.textContent = 'Link'), 1500);
      });
    });
    // Buttons with a short text, and their accessible names.
    const buttons: [HTMLButtonElement, string][] = [
      [button('More like this', actions.more), 'More like this'],
      [button('PNG', actions.download), 'Save PNG'],
      [copyLink, 'Copy link'],
      [button('Breed?', actions.classify), 'Which breed?'],
    ];
    for (const [button, description] of buttons) {
      button.setAttribute('aria-label', `${description}: ${caption}`);
      button.title = description;
    }
    this.buttons = buttons.map(([button]) => button);
    this.canvas.setAttribute('aria-label', `${name}, not generated yet`);
    const text = el('p', { class: 'caption' }, el('strong', { text: name }), ' ', el('span', { text: caption.slice(name.length).trim() }));
    this.element = el('li', { class: 'image waiting' }, this.canvas, text, el('div', { class: 'image-actions' }, ...this.buttons));
    this.enable(false);
  }

  private enable(isEnabled: boolean): void {
    for (const button of this.buttons) button.disabled = !isEnabled;
  }

  /** Shows a preview, or the final image if `progress` is 1. */
  show(pixels: Pixels, progress: number): void {
    drawPixels(this.canvas, pixels);
    this.pixels = pixels;
    this.element.classList.remove('waiting');
    if (progress < 1) return;
    this.element.classList.add('done');
    this.canvas.setAttribute('aria-label', `A generated cat: ${this.name}`);
    this.enable(true);
  }

  /** Marks an unfinished image as stopped. */
  markStopped(): void {
    if (!this.element.classList.contains('done')) this.element.classList.add('stopped');
  }
}
