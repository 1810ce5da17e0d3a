mod encode;

use encode::{Image, Sampling, Scan};
use image::{ExtendedColorType, ImageEncoder, Rgb, Rgba, RgbaImage, codecs::webp::WebPEncoder};
use tiny_cats_models::random::{Purpose, Stream};

use super::*;

const MISSING: &str = "a broken JPEG file: its end is missing";
const GRAY: &[Sampling] = &[(1, 1)];
const FULL: &[Sampling] = &[(1, 1), (1, 1), (1, 1)];
const HALF: &[Sampling] = &[(2, 2), (1, 1), (1, 1)];
const CMYK: &[Sampling] = &[(1, 1), (1, 1), (1, 1), (1, 1)];

/// Returns noise that is smooth enough for decoders' rounding errors to be small.
fn noise(size: (usize, usize), sampling: &[Sampling]) -> Image {
    let mut stream = Stream::new(1, Purpose::Synthetic, 0);
    Image::new(size, sampling, |_, _| {
        let mut block = [0; 64];
        block[0] = stream.uniform_int(100) as i32 - 50;
        // Some blocks have none, so that runs of ended blocks occur.
        for _ in 0..stream.uniform_int(3) * 3 {
            block[1 + stream.uniform_int(63) as usize] = stream.uniform_int(15) as i32 - 7;
        }
        block
    })
}

/// Returns the same image in all encodings, with their names.
fn files(size: (usize, usize), sampling: &[Sampling]) -> Vec<(String, Vec<u8>)> {
    let (image, count) = (noise(size, sampling), sampling.len());
    let mut files = Vec::new();
    for interval in [0, 1, 3] {
        let name = |kind: &str| format!("{kind}, {count} components, {sampling:?}, restart {interval}");
        for interleaved in [true, false] {
            let file = image.file(false, &Scan::sequential(count, interleaved), interval);
            files.push((name(if interleaved { "interleaved" } else { "non-interleaved" }), file));
        }
        files.push((name("progressive"), image.file(true, &Scan::progressive(count), interval)));
    }
    files
}

#[test]
fn jpegs_of_all_encodings_are_complete_and_equal() {
    for sampling in [GRAY, FULL, HALF, &[(2, 1), (1, 1), (1, 1)], CMYK] {
        let files = files((45, 37), sampling);
        let expected = upright(&files[0].1).unwrap();
        assert_eq!(expected.dimensions(), (45, 37));
        for (name, file) in files {
            assert_eq!(jpeg::extent(&file), jpeg::Extent { end: file.len(), has_end_marker: true }, "{name}");
            assert!(
                matches!(jpeg::completeness(&file), Completeness::Complete(_)),
                "{name}: {:?}",
                jpeg::completeness(&file)
            );
            assert_eq!(check(&file), Ok([45, 37]), "{name}");
            // The decoder decodes non-interleaved images with subsampling incorrectly.
            if !(name.starts_with("non-interleaved") && sampling.iter().any(|&s| s != (1, 1))) {
                assert!(upright(&file).unwrap() == expected, "{name}");
            }
        }
    }
}

#[test]
fn truncated_jpegs_are_rejected_unless_only_the_end_marker_is_missing() {
    for (name, file) in [files((17, 9), HALF), files((17, 9), GRAY)].concat() {
        let data = file.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let expected = upright(&file).unwrap();
        let complete = file.len() - 2;
        for end in data..complete {
            let cut = &file[..end];
            assert_eq!(check(cut).unwrap_err(), MISSING, "{name}: {end} of {complete} bytes");
            assert_eq!(upright(cut).unwrap_err(), MISSING, "{name}: {end} of {complete} bytes");
            // An end marker does not make the data complete.
            let with_marker = [cut, &[0xff, 0xd9]].concat();
            let error = upright(&with_marker).unwrap_err();
            assert!(error.starts_with("a broken JPEG file: "), "{name}: {end} of {complete} bytes: {error}");
        }
        assert_eq!(check(&file[..complete]), Ok([17, 9]), "{name}");
        assert!(upright(&file[..complete]).unwrap() == expected, "{name}");
        assert!(upright(&file[..complete + 1]).unwrap() == expected, "{name}");
    }
}

#[test]
fn data_after_the_first_jpeg_image_are_ignored() {
    for (name, file) in files((40, 24), HALF) {
        let expected = upright(&file).unwrap();
        let second = &file[..file.len() / 2];
        let video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42\xff\xd9..\xff\xda..mdat\xff\xda\0\x08";
        for trailer in [&b"\0"[..], b"\xff\xda", video, second, &file] {
            let long = [&file, trailer].concat();
            assert_eq!(check(&long), Ok([40, 24]), "{name}");
            assert!(upright(&long).unwrap() == expected, "{name}");
        }
        // The second image of an MPO file does not complete a first one that is cut.
        let cut = [&file[..file.len() - 20], &file].concat();
        let error = upright(&cut).unwrap_err();
        assert!(error.starts_with("a broken JPEG file: "), "{name}: {error}");
    }
}

#[test]
fn a_thumbnail_in_the_header_is_ignored() {
    let thumbnail = noise((8, 8), GRAY).file(false, &Scan::sequential(1, true), 0);
    let file = noise((40, 24), HALF).file(false, &Scan::sequential(3, true), 0);
    let header = [&[0xff, 0xe1], &(thumbnail.len() as u16 + 2).to_be_bytes()[..], &thumbnail].concat();
    let with_thumbnail = [&file[..2], &header, &file[2..]].concat();
    assert!(upright(&with_thumbnail).unwrap() == upright(&file).unwrap());
    assert_eq!(check(&with_thumbnail[..with_thumbnail.len() - 20]).unwrap_err(), MISSING);
}

#[test]
fn unsupported_jpeg_codings_are_rejected() {
    let mut file = noise((40, 24), HALF).file(false, &Scan::sequential(3, true), 0);
    let frame = file.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    for marker in [0xc3, 0xc9, 0xca] {
        file[frame + 1] = marker;
        let error = check(&file).unwrap_err();
        assert!(error.starts_with("a broken JPEG file: ") && !error.contains('\n'), "{error}");
    }
}

/// Returns the means of 2 × 2 pixels, or of fewer at the edges.
fn reduced(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width.div_ceil(2), height.div_ceil(2), |x, y| {
        let position = |i: u32| (2 * x + i % 2, 2 * y + i / 2);
        let pixels: Vec<_> =
            (0..4).filter_map(|i| image.get_pixel_checked(position(i).0, position(i).1)).collect();
        let count = pixels.len() as u32;
        Rgb([0, 1, 2].map(|c| {
            ((pixels.iter().map(|pixel| u32::from(pixel[c])).sum::<u32>() + count / 2) / count) as u8
        }))
    })
}

/// Returns the mean and the maximum difference of two images.
fn difference(a: &RgbImage, b: &RgbImage) -> (f64, u8) {
    assert_eq!(a.dimensions(), b.dimensions());
    let differences = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| a.abs_diff(b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (sum / a.as_raw().len() as f64, differences.max().unwrap())
}

#[test]
fn half_size_jpegs_match_reduced_full_size_jpegs() {
    for sampling in [GRAY, FULL, HALF, CMYK] {
        // Smooth within blocks, so that all methods of reduction agree.
        let mut stream = Stream::new(2, Purpose::Synthetic, 0);
        let image = Image::new((61, 47), sampling, |component, block| {
            let mut coefficients = [0; 64];
            coefficients[0] = if component == 3 { 40 } else { (block as i32 * 7) % 60 - 30 };
            coefficients[1] = stream.uniform_int(9) as i32 - 4;
            coefficients
        });
        let count = sampling.len();
        for (progressive, scans) in [(false, Scan::sequential(count, true)), (true, Scan::progressive(count))]
        {
            let file = image.file(progressive, &scans, 0);
            // Four components can also be YCCK.
            let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02";
            let ycck = [&file[..2], adobe, &file[2..]].concat();
            for file in if count == 4 { vec![file, ycck] } else { vec![file] } {
                let half = large::jpeg(&file, jpeg::completeness(&file)).unwrap();
                let (mean, max) = difference(&half, &reduced(&upright(&file).unwrap()));
                assert!(mean < 2.5 && max < 60, "{sampling:?} {progressive}: {mean} {max}");
            }
        }
    }
}

#[test]
fn half_size_pngs_and_webps_are_means_of_pixels() {
    for (width, height) in [(14, 10), (13, 9), (1, 1)] {
        let color = |x: u32, y: u32| [x * 37 + y, x * y * 3, (x ^ y) * 11].map(|value| value as u8);
        let rgb = RgbImage::from_fn(width, height, |x, y| Rgb(color(x, y)));
        let rgba = RgbaImage::from_fn(width, height, |x, y| {
            let [r, g, b] = color(x, y);
            Rgba([r, g, b, (x * 50 + y) as u8])
        });
        let gray = image::GrayImage::from_fn(width, height, |x, y| image::Luma([color(x, y)[0]]));
        let gray_alpha = image::GrayAlphaImage::from_fn(width, height, |x, y| {
            image::LumaA([color(x, y)[0], color(x, y)[1]])
        });
        let deep = image::ImageBuffer::<Rgb<u16>, _>::from_fn(width, height, |x, y| {
            Rgb(color(x, y).map(|value| u16::from(value) * 257))
        });
        let kinds: [DynamicImage; 5] = [rgb.into(), rgba.into(), gray.into(), gray_alpha.into(), deep.into()];
        for image in kinds {
            let mut png = Cursor::new(Vec::new());
            image.write_to(&mut png, ImageFormat::Png).unwrap();
            let png = png.into_inner();
            let expected = reduced(&upright(&png).unwrap());
            assert!(large::png(&png).unwrap() == expected, "{:?} {width}", image.color());
            if !matches!(image.color(), image::ColorType::Rgb8 | image::ColorType::Rgba8) {
                continue;
            }
            let mut webp = Vec::new();
            WebPEncoder::new_lossless(&mut webp)
                .write_image(image.as_bytes(), width, height, image.color().into())
                .unwrap();
            assert!(large::webp(&webp).unwrap() == expected, "{:?} {width}", image.color());
        }
    }
}

#[test]
fn images_above_64_million_pixels_are_decoded_at_half_size() {
    // A row of blocks of one color each, a thousand times, with restart markers between them.
    let value = |block: usize| (block % 128) as i32 - 64;
    let image = Image::new((8001, 8), GRAY, |_, block| {
        let mut coefficients = [0; 64];
        coefficients[0] = value(block);
        coefficients
    });
    let row = image.file(false, &Scan::sequential(1, true), 1001);
    let find = |marker: u8| row.windows(2).position(|pair| pair == [0xff, marker]).unwrap();
    let (frame, data) = (find(0xc0), find(0xda) + 10);
    let mut file = row[..data].to_vec();
    file[frame + 5..frame + 7].copy_from_slice(&8001u16.to_be_bytes());
    for number in 0..1001u16 {
        file.extend(&row[data..row.len() - 2]);
        file.extend([0xff, if number == 1000 { 0xd9 } else { 0xd0 + (number % 8) as u8 }]);
    }
    assert_eq!(check(&file), Ok([8001, 8001]));
    let DecodedImage { image: decoded, size } = decode_with(&file, |decoded| decoded).unwrap();
    assert_eq!((decoded.dimensions(), size), ((4001, 4001), [8001, 8001]));
    for (x, y) in [(0, 0), (4000, 4000), (1234, 77), (3, 4), (4000, 0), (2001, 3999)] {
        let block = (x / 4) as usize;
        // The first coefficient is eight times the mean, and is stored in steps of 8.
        assert_eq!(decoded.get_pixel(x, y), &Rgb([(value(block) + 128) as u8; 3]), "{x} {y}");
    }
    let with_marker = [&file[..file.len() / 2], &[0xff, 0xd9]].concat();
    assert_eq!(upright(&with_marker).unwrap_err(), MISSING);
}

#[test]
fn images_that_need_too_much_memory_are_rejected() {
    let png = |width: u32, height: u32, interlaced: u8| {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[1, 0, 0, 0, interlaced]].concat();
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[]), (b"IEND", &[])] {
            let chunk = [&kind[..], data].concat();
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(&chunk);
            bytes.extend(crc(&chunk).to_be_bytes());
        }
        bytes
    };
    let error = check(&png(32_768, 8_000, 0)).unwrap_err();
    assert_eq!(error, "32768 x 8000 pixels are too many; expected at most 210000000");
    assert!(check(&png(32_769, 8, 0)).is_err());
    assert_eq!(check(&png(14_000, 15_000, 0)), Ok([14_000, 15_000]));
    let error = upright(&png(14_000, 15_000, 1)).unwrap_err();
    assert_eq!(error, "a broken PNG file: expected no interlacing above 64000000 pixels");
    // An image without data takes neither time nor memory.
    assert!(upright(&png(14_000, 15_000, 0)).unwrap_err().starts_with("a broken PNG file: "));
    let mut jpeg = noise((40, 24), HALF).file(true, &Scan::progressive(3), 0);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x3a, 0x98, 0x36, 0xb0]);
    assert_eq!(check(&jpeg), Ok([14_000, 15_000]));
    assert_eq!(upright(&jpeg).unwrap_err(), MISSING);
}

#[test]
fn parts_of_a_file_are_mapped_to_its_reduced_image() {
    let decoded =
        |(width, height): (u32, u32), size| DecodedImage { image: RgbImage::new(width, height), size };
    let same = decoded((30, 20), [30, 20]);
    assert_eq!(same.part([3, 4, 5, 6]), [3, 4, 5, 6]);
    let half = decoded((15, 11), [30, 21]);
    assert_eq!(half.part([0, 0, 30, 21]), [0, 0, 15, 11]);
    assert_eq!(half.part([10, 10, 4, 4]), [5, 5, 2, 2]);
    assert_eq!(half.part([29, 20, 1, 1]), [14, 10, 1, 1]);
}

/// Returns the checksum of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn panics_of_decoders_become_errors() {
    let png = truncated_palette();
    assert_eq!(check(&png), Ok([1, 1]));
    let error = upright(&png).unwrap_err();
    assert!(error.starts_with("a broken PNG file: ") && !error.contains('\n'), "{error}");
    let error = catch_panic(&png, || -> Result<(), String> { panic!("at\n{}", 3) }).unwrap_err();
    assert_eq!(error, "a broken PNG file: its decoder failed: at\\n3");
}

/// Returns a PNG of one pixel, whose color is the second in a palette of one color and two thirds.
fn truncated_palette() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![1, 2, 3, 4, 5]);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[1]).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn unsupported_formats_are_named() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic...."[..], "a HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic....", "a HEIC"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1....", "a HEIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif....", "an AVIF"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1....", "an AVIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n....", "a JPEG XL"),
        (b"GIF89a....", "a GIF"),
        (b"BM....", "a BMP"),
        (b"II*\0....", "a TIFF"),
    ] {
        assert_eq!(check(bytes).unwrap_err(), format!("{name} image; expected PNG, JPEG or WebP"));
    }
    for bytes in [&b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom...."[..], b"\0\0\0\x18ftyp", b"....", b"", b"\xff"] {
        assert_eq!(check(bytes).unwrap_err(), "not an image");
    }
}

#[test]
fn the_end_of_a_png_is_its_last_chunk() {
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&[7; 12], 2, 2, ExtendedColorType::Rgb8)
        .unwrap();
    let long = [&png[..], &[0; 100_000]].concat();
    assert!(upright(&long).unwrap() == upright(&png).unwrap());
    let cut = [&png[..png.len() - 12], b"\0\0\x10\0tEXt..IEND...."].concat();
    assert_eq!(check(&cut).unwrap_err(), "a broken PNG file: its end is missing");
}
