/**
 * Decodes an image file to upright pixels on a white background with the browser's decoders. It ignores color profiles, as training does.
 * The limits are those of `export/src/decode.rs`.
 */
import { UserError } from './errors.ts';
import { readImageHeader } from './image-header.ts';
import { toRgb } from './preprocess.ts';
import type { Rgb } from './resize.ts';

export const MAX_BYTES = 64 << 20;
export const MAX_PIXELS = 64_000_000;
export const MAX_SIDE = 32_768;

const HEADER_BYTES = 1 << 20;
/** The number of rows that are copied at once, so that a large image is not in memory twice. */
const CHUNK_ROWS = 256;

/** Decodes the image in `file`; throws a {@link UserError} with the reason if that fails. */
export async function decode(file: Blob): Promise<Rgb> {
  if (file.size === 0) throw new UserError('an empty file');
  if (file.size > MAX_BYTES) throw new UserError(`expected at most ${mebibytes(MAX_BYTES)} MiB, found ${mebibytes(file.size)} MiB`);
  const header = readImageHeader(new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer()));
  if (!header) throw new UserError('not an image; expected PNG, JPEG, WebP, GIF or AVIF');
  if (header.format === 'video') throw new UserError('a video; expected an image');
  checkSize(header.width, header.height);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'default' });
  } catch {
    const isSupported = ['PNG', 'JPEG', 'WebP', 'GIF'].includes(header.format);
    throw new UserError(isSupported ? `a broken ${header.format} file` : `this browser cannot decode ${header.format}; expected PNG, JPEG or WebP`);
  }
  try {
    checkSize(bitmap.width, bitmap.height);
    return drawOnWhite(bitmap);
  } finally {
    bitmap.close();
  }
}

const mebibytes = (bytes: number) => Math.ceil(bytes / (1 << 20));

function checkSize(width: number | undefined, height: number | undefined): void {
  if (width === undefined || height === undefined) return;
  if (width === 0 || height === 0) throw new UserError('an image without pixels');
  if (width > MAX_SIDE || height > MAX_SIDE) throw new UserError(`expected sides of at most ${MAX_SIDE} px, found ${width} x ${height} px`);
  if (width * height > MAX_PIXELS) throw new UserError(`expected at most ${MAX_PIXELS} pixels, found ${width} x ${height}`);
}

function drawOnWhite(bitmap: ImageBitmap): Rgb {
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 3);
  for (let top = 0; top < height; top += CHUNK_ROWS) {
    const rows = Math.min(CHUNK_ROWS, height - top);
    const context = new OffscreenCanvas(width, rows).getContext('2d', { willReadFrequently: true, alpha: false });
    if (!context) throw new UserError('this browser cannot read pixels from a canvas');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    data.set(toRgb(context.getImageData(0, 0, width, rows).data, width, rows).data, top * width * 3);
  }
  return { width, height, data };
}
