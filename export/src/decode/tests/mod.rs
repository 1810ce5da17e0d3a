mod encode;

use encode::{Image, Sampling, Scan};
use image::{ExtendedColorType, ImageEncoder, Rgb, Rgba, RgbaImage, codecs::webp::WebPEncoder};
use tiny_cats_models::random::{Purpose, Stream};

use super::*;

const MISSING: &str = "a broken JPEG file: its end is missing";
const GREY: &[Sampling] = &[(1, 1)];
const FULL: &[Sampling] = &[(1, 1), (1, 1), (1, 1)];
const HALF: &[Sampling] = &[(2, 2), (1, 1), (1, 1)];
const CMYK: &[Sampling] = &[(1, 1), (1, 1), (1, 1), (1, 1)];

/// Returns noise, smooth enough that decoders' rounding does not matter much.
fn noise(size: (usize, usize), sampling: &[Sampling]) -> Image {
    let mut stream = Stream::new(1, Purpose::Synthetic, 0);
    Image::new(size, sampling, |_, _| {
        let mut block = [0; 64];
        block[0] = stream.below(100) as i32 - 50;
        // None in some blocks, so that several end together.
        for _ in 0..stream.below(3) * 3 {
            block[1 + stream.below(63) as usize] = stream.below(15) as i32 - 7;
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
        for together in [true, false] {
            let file = image.file(false, &Scan::sequential(count, together), interval);
            files.push((name(if together { "sequential" } else { "one by one" }), file));
        }
        files.push((name("progressive"), image.file(true, &Scan::progressive(count), interval)));
    }
    files
}

#[test]
fn jpegs_of_all_kinds_are_complete_and_equal() {
    for sampling in [GREY, FULL, HALF, &[(2, 1), (1, 1), (1, 1)], CMYK] {
        let files = files((45, 37), sampling);
        let expected = upright(&files[0].1).unwrap();
        assert_eq!(expected.dimensions(), (45, 37));
        for (name, file) in files {
            assert_eq!(jpeg::extent(&file), jpeg::Extent { end: file.len(), has_end_marker: true }, "{name}");
            assert!(
                matches!(jpeg::walk(&file), Completeness::Complete(_)),
                "{name}: {:?}",
                jpeg::walk(&file)
            );
            assert_eq!(check(&file), Ok([45, 37]), "{name}");
            // The decoder decodes such images incorrectly.
            if !(name.starts_with("one by one") && sampling.iter().any(|&s| s != (1, 1))) {
                assert!(upright(&file).unwrap() == expected, "{name}");
            }
        }
    }
}

#[test]
fn a_jpeg_is_broken_wherever_it_is_cut_but_before_its_end_marker() {
    for (name, file) in [files((17, 9), HALF), files((17, 9), GREY)].concat() {
        let data = file.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let expected = upright(&file).unwrap();
        let whole = file.len() - 2;
        for end in data..whole {
            let cut = &file[..end];
            assert_eq!(check(cut).unwrap_err(), MISSING, "{name}: {end} of {whole} bytes");
            assert_eq!(upright(cut).unwrap_err(), MISSING, "{name}: {end} of {whole} bytes");
            // An end marker does not make the data complete.
            let has_end_marker = [cut, &[0xff, 0xd9]].concat();
            let error = upright(&has_end_marker).unwrap_err();
            assert!(error.starts_with("a broken JPEG file: "), "{name}: {end} of {whole} bytes: {error}");
        }
        assert_eq!(check(&file[..whole]), Ok([17, 9]), "{name}");
        assert!(upright(&file[..whole]).unwrap() == expected, "{name}");
        assert!(upright(&file[..whole + 1]).unwrap() == expected, "{name}");
    }
}

#[test]
fn what_follows_the_first_image_of_a_jpeg_file_does_not_matter() {
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
fn a_small_picture_in_the_header_is_not_the_image() {
    let small = noise((8, 8), GREY).file(false, &Scan::sequential(1, true), 0);
    let file = noise((40, 24), HALF).file(false, &Scan::sequential(3, true), 0);
    let header = [&[0xff, 0xe1], &(small.len() as u16 + 2).to_be_bytes()[..], &small].concat();
    let with = [&file[..2], &header, &file[2..]].concat();
    assert!(upright(&with).unwrap() == upright(&file).unwrap());
    assert_eq!(check(&with[..with.len() - 20]).unwrap_err(), MISSING);
}

#[test]
fn arithmetic_coding_is_one_clear_error() {
    let mut file = noise((40, 24), HALF).file(false, &Scan::sequential(3, true), 0);
    let frame = file.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    for marker in [0xc3, 0xc9, 0xca] {
        file[frame + 1] = marker;
        let error = check(&file).unwrap_err();
        assert!(error.starts_with("a broken JPEG file: ") && !error.contains('\n'), "{error}");
    }
}

/// Returns the means of two by two pixels, or of as many of them as exist.
fn halved(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    RgbImage::from_fn(width.div_ceil(2), height.div_ceil(2), |x, y| {
        let place = |i: u32| (2 * x + i % 2, 2 * y + i / 2);
        let some: Vec<_> = (0..4).filter_map(|i| picture.get_pixel_checked(place(i).0, place(i).1)).collect();
        let count = some.len() as u32;
        Rgb([0, 1, 2]
            .map(|c| ((some.iter().map(|pixel| u32::from(pixel[c])).sum::<u32>() + count / 2) / count) as u8))
    })
}

/// Returns the mean and the maximum difference of two images.
fn difference(a: &RgbImage, b: &RgbImage) -> (f64, u8) {
    assert_eq!(a.dimensions(), b.dimensions());
    let each = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| a.abs_diff(b));
    let sum: f64 = each.clone().map(f64::from).sum();
    (sum / a.as_raw().len() as f64, each.max().unwrap())
}

#[test]
fn jpegs_at_half_size_are_those_at_full_size_made_smaller() {
    for sampling in [GREY, FULL, HALF, CMYK] {
        // Smooth within blocks, so that all methods of reduction agree.
        let mut stream = Stream::new(2, Purpose::Synthetic, 0);
        let image = Image::new((61, 47), sampling, |component, block| {
            let mut coefficients = [0; 64];
            coefficients[0] = if component == 3 { 40 } else { (block as i32 * 7) % 60 - 30 };
            coefficients[1] = stream.below(9) as i32 - 4;
            coefficients
        });
        let count = sampling.len();
        for (progressive, scans) in [(false, Scan::sequential(count, true)), (true, Scan::progressive(count))]
        {
            let file = image.file(progressive, &scans, 0);
            // With four components, the same as YCCK.
            let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02";
            let ycck = [&file[..2], adobe, &file[2..]].concat();
            for file in if count == 4 { vec![file, ycck] } else { vec![file] } {
                let half = large::jpeg(&file, jpeg::walk(&file)).unwrap();
                let (mean, most) = difference(&half, &halved(&upright(&file).unwrap()));
                assert!(mean < 2.5 && most < 60, "{sampling:?} {progressive}: {mean} {most}");
            }
        }
    }
}

#[test]
fn pngs_and_webps_at_half_size_are_means_of_their_pixels() {
    for (width, height) in [(14, 10), (13, 9), (1, 1)] {
        let color = |x: u32, y: u32| [x * 37 + y, x * y * 3, (x ^ y) * 11].map(|value| value as u8);
        let rgb = RgbImage::from_fn(width, height, |x, y| Rgb(color(x, y)));
        let rgba = RgbaImage::from_fn(width, height, |x, y| {
            let [r, g, b] = color(x, y);
            Rgba([r, g, b, (x * 50 + y) as u8])
        });
        let gray = image::GrayImage::from_fn(width, height, |x, y| image::Luma([color(x, y)[0]]));
        let grey_alpha = image::GrayAlphaImage::from_fn(width, height, |x, y| {
            image::LumaA([color(x, y)[0], color(x, y)[1]])
        });
        let deep = image::ImageBuffer::<Rgb<u16>, _>::from_fn(width, height, |x, y| {
            Rgb(color(x, y).map(|value| u16::from(value) * 257))
        });
        let kinds: [DynamicImage; 5] = [rgb.into(), rgba.into(), gray.into(), grey_alpha.into(), deep.into()];
        for picture in kinds {
            let mut png = Cursor::new(Vec::new());
            picture.write_to(&mut png, ImageFormat::Png).unwrap();
            let png = png.into_inner();
            let expected = halved(&upright(&png).unwrap());
            assert!(large::png(&png).unwrap() == expected, "{:?} {width}", picture.color());
            if !matches!(picture.color(), image::ColorType::Rgb8 | image::ColorType::Rgba8) {
                continue;
            }
            let mut webp = Vec::new();
            WebPEncoder::new_lossless(&mut webp)
                .write_image(picture.as_bytes(), width, height, picture.color().into())
                .unwrap();
            assert!(large::webp(&webp).unwrap() == expected, "{:?} {width}", picture.color());
        }
    }
}

#[test]
fn a_picture_of_more_than_64_million_pixels_is_decoded_at_half_its_size() {
    // A row of blocks of one color each, a thousand times, with restart markers between them.
    let value = |block: usize| (block % 128) as i32 - 64;
    let image = Image::new((8001, 8), GREY, |_, block| {
        let mut coefficients = [0; 64];
        coefficients[0] = value(block);
        coefficients
    });
    let row = image.file(false, &Scan::sequential(1, true), 1001);
    let place = |marker: u8| row.windows(2).position(|pair| pair == [0xff, marker]).unwrap();
    let (frame, data) = (place(0xc0), place(0xda) + 10);
    let mut file = row[..data].to_vec();
    file[frame + 5..frame + 7].copy_from_slice(&8001u16.to_be_bytes());
    for number in 0..1001u16 {
        file.extend(&row[data..row.len() - 2]);
        file.extend([0xff, if number == 1000 { 0xd9 } else { 0xd0 + (number % 8) as u8 }]);
    }
    assert_eq!(check(&file), Ok([8001, 8001]));
    let DecodedImage { picture, size } = decode_with(&file, |upright| upright).unwrap();
    assert_eq!((picture.dimensions(), size), ((4001, 4001), [8001, 8001]));
    for (x, y) in [(0, 0), (4000, 4000), (1234, 77), (3, 4), (4000, 0), (2001, 3999)] {
        let block = (x / 4) as usize;
        // The first coefficient is eight times the mean, and is stored in steps of 8.
        assert_eq!(picture.get_pixel(x, y), &Rgb([(value(block) + 128) as u8; 3]), "{x} {y}");
    }
    let has_end_marker = [&file[..file.len() / 2], &[0xff, 0xd9]].concat();
    assert_eq!(upright(&has_end_marker).unwrap_err(), MISSING);
}

#[test]
fn what_would_need_too_much_memory_is_refused_by_the_header() {
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
    assert_eq!(error, "a broken PNG file: an interlaced picture of so many pixels");
    // An image without data takes neither time nor memory.
    assert!(upright(&png(14_000, 15_000, 0)).unwrap_err().starts_with("a broken PNG file: "));
    let mut jpeg = noise((40, 24), HALF).file(true, &Scan::progressive(3), 0);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x3a, 0x98, 0x36, 0xb0]);
    assert_eq!(check(&jpeg), Ok([14_000, 15_000]));
    assert_eq!(upright(&jpeg).unwrap_err(), MISSING);
}

#[test]
fn parts_of_a_reduced_picture_are_found_by_their_place_in_the_file() {
    let upright =
        |picture: (u32, u32), size| DecodedImage { picture: RgbImage::new(picture.0, picture.1), size };
    let same = upright((30, 20), [30, 20]);
    assert_eq!(same.part([3, 4, 5, 6]), [3, 4, 5, 6]);
    let half = upright((15, 11), [30, 21]);
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
fn a_file_over_which_a_decoder_panics_is_broken() {
    let png = palette_without_its_last_byte();
    assert_eq!(check(&png), Ok([1, 1]));
    let error = upright(&png).unwrap_err();
    assert!(error.starts_with("a broken PNG file: ") && !error.contains('\n'), "{error}");
    let error = catch_panic(&png, || -> Result<(), String> { panic!("at\n{}", 3) }).unwrap_err();
    assert_eq!(error, "a broken PNG file: its decoder failed: at\\n3");
}

/// Returns a PNG of one pixel, whose color is the second in a palette of one color and two thirds.
fn palette_without_its_last_byte() -> Vec<u8> {
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
fn formats_are_named_as_people_write_them() {
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
        assert_eq!(check(bytes).unwrap_err(), format!("{name} picture; expected PNG, JPEG or WebP"));
    }
    for bytes in [&b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom...."[..], b"\0\0\0\x18ftyp", b"....", b"", b"\xff"] {
        assert_eq!(check(bytes).unwrap_err(), "not a picture");
    }
}

#[test]
fn the_end_of_a_png_is_found_by_its_chunks() {
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&[7; 12], 2, 2, ExtendedColorType::Rgb8)
        .unwrap();
    let long = [&png[..], &[0; 100_000]].concat();
    assert!(upright(&long).unwrap() == upright(&png).unwrap());
    let cut = [&png[..png.len() - 12], b"\0\0\x10\0tEXt..IEND...."].concat();
    assert_eq!(check(&cut).unwrap_err(), "a broken PNG file: its end is missing");
}
