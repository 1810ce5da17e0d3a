/** Reads the format and size of an image from its first bytes, so that an image that is too large is rejected before it is decoded. */

export interface ImageHeader {
  format: string;
  /** The size before EXIF rotation, if it is in the first bytes. */
  width?: number;
  height?: number;
}

const ascii = (bytes: Uint8Array, at: number, length: number) => String.fromCharCode(...bytes.subarray(at, at + length));

/** Reads the header at the start of `bytes`; null if it is not an image format that browsers know. */
export function readImageHeader(bytes: Uint8Array): ImageHeader | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (ascii(bytes, 0, 4) === '\x89PNG') {
    return bytes.length >= 24 ? { format: 'PNG', width: view.getUint32(16), height: view.getUint32(20) } : { format: 'PNG' };
  }
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpeg(view);
  if (ascii(bytes, 0, 4) === 'RIFF' && ascii(bytes, 8, 4) === 'WEBP') return webp(bytes, view);
  if (ascii(bytes, 0, 4) === 'GIF8') {
    return bytes.length >= 10 ? { format: 'GIF', width: view.getUint16(6, true), height: view.getUint16(8, true) } : { format: 'GIF' };
  }
  if (ascii(bytes, 4, 4) === 'ftyp') {
    const brand = ascii(bytes, 8, 4);
    return { format: /^avi[fs]/.test(brand) ? 'AVIF' : /^(hei|mif|msf)/.test(brand) ? 'HEIC' : 'video' };
  }
  if (ascii(bytes, 0, 2) === 'BM') return { format: 'BMP' };
  return null;
}

/** Frame headers are markers C0 to CF without C4 (tables), C8 (reserved) and CC (arithmetic conditioning). */
function jpeg(view: DataView): ImageHeader {
  let at = 2;
  while (at + 9 < view.byteLength) {
    if (view.getUint8(at) !== 0xff) break;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at++;
      continue;
    }
    const isFrame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
    if (isFrame) return { format: 'JPEG', height: view.getUint16(at + 5), width: view.getUint16(at + 7) };
    at += 2 + view.getUint16(at + 2);
  }
  return { format: 'JPEG' };
}

function webp(bytes: Uint8Array, view: DataView): ImageHeader {
  const format = 'WebP';
  if (bytes.length < 30) return { format };
  switch (ascii(bytes, 12, 4)) {
    case 'VP8 ':
      return { format, width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
    case 'VP8L': {
      const bits = view.getUint32(21, true);
      return { format, width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    case 'VP8X': {
      const size = (at: number) => 1 + (view.getUint16(at, true) | (view.getUint8(at + 2) << 16));
      return { format, width: size(24), height: size(27) };
    }
    default:
      return { format };
  }
}
