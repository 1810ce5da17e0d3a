/** Handles files that are dropped, pasted, or chosen with the button for models. */
import type { View } from '../state.ts';
import { byId } from './dom.ts';

interface FileHandlers {
  view(): View;
  images(files: File[]): void;
  model(file: File): void;
}

const MODEL = /\.(onnx|safetensors|pt|pth|ckpt|pb|bin)$/i;

export function startDrops(handlers: FileHandlers): void {
  const overlay = byId('drop');
  const handleFiles = (files: File[]) => {
    const isImage = (file: File) => !MODEL.test(file.name) && (file.type.startsWith('image/') || handlers.view() === 'classify');
    const images = files.filter(isImage);
    if (images.length > 0) handlers.images(images);
    const [model] = files.filter((file) => !isImage(file));
    if (model) handlers.model(model);
  };

  let depth = 0;
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
  addEventListener('dragenter', (event) => {
    if (!hasFiles(event)) return;
    depth++;
    overlay.hidden = false;
  });
  addEventListener('dragleave', () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) overlay.hidden = true;
  });
  addEventListener('dragover', (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener('drop', (event) => {
    depth = 0;
    overlay.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    handleFiles([...(event.dataTransfer?.files ?? [])]);
  });
  addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith('image/'));
    if (files.length === 0) return;
    event.preventDefault();
    handlers.images(files);
  });

  const input = byId<HTMLInputElement>('model-file');
  byId('choose-model').addEventListener('click', () => input.click());
  input.addEventListener('change', () => {
    const file = input.files?.[0];
    if (file) handlers.model(file);
    input.value = '';
  });
}
