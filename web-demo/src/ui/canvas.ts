/** Small pictures on larger canvases, and as files of their own size. */
import type { Pixels } from '../engine/protocol.ts';

/** A canvas of the network's own size. */
export function native({ size, rgba }: Pixels): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = size;
  canvas.getContext('2d')?.putImageData(new ImageData(rgba, size, size), 0, 0);
  return canvas;
}

/** Shows `pixels` on `canvas`, enlarged smoothly by a whole factor, so that every pixel is enlarged alike. */
export function show(canvas: HTMLCanvasElement, pixels: Pixels, least = 256): void {
  const side = pixels.size * Math.max(1, Math.ceil(least / pixels.size));
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext('2d');
  if (!context) return;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = 'high';
  context.drawImage(native(pixels), 0, 0, side, side);
}

export function png(pixels: Pixels): Promise<Blob | null> {
  return new Promise((resolve) => native(pixels).toBlob(resolve, 'image/png'));
}
