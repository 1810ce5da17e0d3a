//! Image files that no encoder writes.

/// The CRC-32 of a PNG chunk.
pub fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(c & 1)))
    })
}

/// A PNG of one pixel with index 1 in a palette of 5 bytes, which is truncated within its second color: decoders may panic.
pub fn png_with_truncated_palette() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let pixel = [0x78, 0x01, 1, 2, 0, 0xfd, 0xff, 0, 1, 0, 3, 0, 2];
    for (kind, data) in [
        (b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0][..]),
        (b"PLTE", &[1, 2, 3, 4, 5]),
        (b"IDAT", &pixel),
        (b"IEND", &[]),
    ] {
        let chunk = [&kind[..], data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc(&chunk).to_be_bytes());
    }
    png
}

/// Variants of `jpeg` that cameras write: followed by a video, followed by a truncated second image, and without its end marker.
pub fn camera_jpegs(jpeg: &[u8]) -> [(&'static str, Vec<u8>); 3] {
    let video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42\xff\xd9....mdat\xff\xda\0\x08....";
    [
        ("motion.jpg", [jpeg, video].concat()),
        ("two.mpo", [jpeg, &jpeg[..jpeg.len() / 2]].concat()),
        ("endless.jpg", jpeg[..jpeg.len() - 2].to_vec()),
    ]
}
