/**
 * From a file to upright pixels on white, by the browser's decoders. Colours are taken as they are stored, because the training pictures
 * were; the limits are those of `export/src/decode.rs`.
 */
import { UserError } from './errors.ts';
import { pictureHeader } from './picture-header.ts';
import { rgbOf } from './preprocess.ts';
import type { Rgb } from './resize.ts';

export const MOST_BYTES = 64 << 20;
export const MOST_PIXELS = 64_000_000;
export const LONGEST_SIDE = 32_768;

const HEADER_BYTES = 1 << 20;
/** Rows that are copied at once, so that a large picture is in memory twice for a moment only. */
const ROWS = 256;

/** The picture in `file`; throws {@link UserError} that says why there is none. */
export async function decode(file: Blob): Promise<Rgb> {
  if (file.size === 0) throw new UserError('an empty file');
  if (file.size > MOST_BYTES) throw new UserError(`${mebibytes(file.size)} MiB are too many; expected at most ${mebibytes(MOST_BYTES)}`);
  const header = pictureHeader(new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer()));
  if (!header) throw new UserError('not a picture; expected PNG, JPEG, WebP, GIF or AVIF');
  if (header.format === 'video') throw new UserError('a video; expected a picture');
  checkSize(header.width, header.height);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'default' });
  } catch {
    const known = ['PNG', 'JPEG', 'WebP', 'GIF'].includes(header.format);
    throw new UserError(known ? `a broken ${header.format} file` : `a ${header.format} picture, which this browser cannot decode; expected PNG, JPEG or WebP`);
  }
  try {
    checkSize(bitmap.width, bitmap.height);
    return onWhite(bitmap);
  } finally {
    bitmap.close();
  }
}

const mebibytes = (bytes: number) => Math.ceil(bytes / (1 << 20));

function checkSize(width: number | undefined, height: number | undefined): void {
  if (width === undefined || height === undefined) return;
  if (width === 0 || height === 0) throw new UserError('a picture without pixels');
  if (width > LONGEST_SIDE || height > LONGEST_SIDE) throw new UserError(`${width} x ${height} pixels; expected sides of at most ${LONGEST_SIDE}`);
  if (width * height > MOST_PIXELS) throw new UserError(`${width} x ${height} pixels are too many; expected at most ${MOST_PIXELS}`);
}

function onWhite(bitmap: ImageBitmap): Rgb {
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 3);
  for (let top = 0; top < height; top += ROWS) {
    const rows = Math.min(ROWS, height - top);
    const context = new OffscreenCanvas(width, rows).getContext('2d', { willReadFrequently: true, alpha: false });
    if (!context) throw new UserError('this browser has no canvas to read pixels from');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    data.set(rgbOf(context.getImageData(0, 0, width, rows).data, width, rows).data, top * width * 3);
  }
  return { width, height, data };
}
