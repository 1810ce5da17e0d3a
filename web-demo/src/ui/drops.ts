/** What is dropped onto the page, pasted into it, or chosen by the button for models. */
import type { View } from '../state.ts';
import { byId } from './dom.ts';

interface Takers {
  view(): View;
  pictures(files: File[]): void;
  model(file: File): void;
}

const MODEL = /\.(onnx|safetensors|pt|pth|ckpt|pb|bin)$/i;

export function startDrops(takers: Takers): void {
  const overlay = byId('drop');
  const take = (files: File[]) => {
    const isPicture = (file: File) => !MODEL.test(file.name) && (file.type.startsWith('image/') || takers.view() === 'classify');
    const pictures = files.filter(isPicture);
    if (pictures.length > 0) takers.pictures(pictures);
    const [model] = files.filter((file) => !isPicture(file));
    if (model) takers.model(model);
  };

  let depth = 0;
  const carriesFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
  addEventListener('dragenter', (event) => {
    if (!carriesFiles(event)) return;
    depth++;
    overlay.hidden = false;
  });
  addEventListener('dragleave', () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) overlay.hidden = true;
  });
  addEventListener('dragover', (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  addEventListener('drop', (event) => {
    depth = 0;
    overlay.hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    take([...(event.dataTransfer?.files ?? [])]);
  });
  addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith('image/'));
    if (files.length === 0) return;
    event.preventDefault();
    takers.pictures(files);
  });

  const input = byId<HTMLInputElement>('model-file');
  byId('choose-model').addEventListener('click', () => input.click());
  input.addEventListener('change', () => {
    const file = input.files?.[0];
    if (file) takers.model(file);
    input.value = '';
  });
}
