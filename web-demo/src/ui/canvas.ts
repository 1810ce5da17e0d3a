/** Shows small images enlarged, and encodes them as PNG at their own size. */
import type { Pixels } from '../engine/protocol.ts';

/** Creates a canvas with the unscaled image. */
export function toCanvas({ size, rgba }: Pixels): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = size;
  canvas.getContext('2d')?.putImageData(new ImageData(rgba, size, size), 0, 0);
  return canvas;
}

/** Draws the image on a canvas, smoothly enlarged by an integer factor to at least `minSide` pixels. */
export function drawPixels(canvas: HTMLCanvasElement, pixels: Pixels, minSide = 256): void {
  const side = pixels.size * Math.max(1, Math.ceil(minSide / pixels.size));
  if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext('2d');
  if (!context) return;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = 'high';
  context.drawImage(toCanvas(pixels), 0, 0, side, side);
}

export function toPng(pixels: Pixels): Promise<Blob | null> {
  return new Promise((resolve) => toCanvas(pixels).toBlob(resolve, 'image/png'));
}
