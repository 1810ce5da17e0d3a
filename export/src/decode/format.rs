//! Detection of a file's format from its first bytes, and a check of its end.

use image::ImageFormat;

/// A supported format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Format {
    /// Detects the format from the content of `bytes`; the error describes the actual content.
    pub(super) fn detect(bytes: &[u8]) -> Result<Self, String> {
        let found = match image::guess_format(bytes) {
            Ok(ImageFormat::Png) => return Ok(Self::Png),
            Ok(ImageFormat::Jpeg) => return Ok(Self::Jpeg),
            Ok(ImageFormat::WebP) => return Ok(Self::WebP),
            Ok(ImageFormat::Gif) => "a GIF",
            Ok(ImageFormat::Bmp) => "a BMP",
            Ok(ImageFormat::Tiff) => "a TIFF",
            Ok(ImageFormat::Ico) => "an ICO",
            Ok(ImageFormat::Avif) => "an AVIF",
            Ok(ImageFormat::Pnm) => "a PNM",
            Ok(ImageFormat::Hdr) => "an HDR",
            Ok(ImageFormat::OpenExr) => "an OpenEXR",
            Ok(ImageFormat::Dds) => "a DDS",
            Ok(ImageFormat::Farbfeld) => "a farbfeld",
            Ok(ImageFormat::Qoi) => "a QOI",
            _ => match container_format(bytes) {
                Some(found) => found,
                None => return Err("not an image".to_string()),
            },
        };
        Err(format!("{found} image; expected PNG, JPEG or WebP"))
    }

    /// Returns the name of the format.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        }
    }
}

/// Detects JPEG XL, and HEIF formats from the brands in their first box.
fn container_format(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"\0\0\0\x0cJXL \r\n\x87\n") || bytes.starts_with(b"\xff\x0a") {
        return Some("a JPEG XL");
    }
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let length = (u32::from_be_bytes(length) as usize).min(256);
    let brands = bytes.get(..length)?.get(8..).filter(|_| bytes[4..].starts_with(b"ftyp"))?;
    let has_brand =
        |names: &[&[u8; 4]]| brands.chunks_exact(4).any(|brand| names.iter().any(|name| *name == brand));
    if has_brand(&[b"avif", b"avis"]) {
        Some("an AVIF")
    } else if has_brand(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"]) {
        Some("a HEIC")
    } else if has_brand(&[b"mif1", b"msf1", b"mif2"]) {
        Some("a HEIF")
    } else {
        None
    }
}

/// True if `bytes` contain the final chunk of a PNG file.
pub(super) fn has_png_end(bytes: &[u8]) -> bool {
    let mut position = 8;
    while let Some([l3, l2, l1, l0, kind @ ..]) = bytes.get(position..position + 8) {
        if kind == b"IEND" {
            return true;
        }
        // The length, kind and checksum take 12 bytes.
        position += u32::from_be_bytes([*l3, *l2, *l1, *l0]) as usize + 12;
    }
    false
}
