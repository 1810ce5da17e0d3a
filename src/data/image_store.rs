//! All images of a data set, decoded once, as the bytes that batches are made of.

use std::{
    io,
    ops::Deref,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tiny_cats_export::{resize_short_side, short_side_size};

use super::{
    Cache, Dataset, Error, ImageFile, Result, View,
    cache::{CacheIndex, CacheKey, checksum, write_at},
    cached::{CachedImages, ImageBytes, byte_len},
    decode,
    view::Bytes,
};

/// The version of the decoded pixels. It must be increased whenever pixels in a cache file would change.
const VERSION: u32 = 2;

/// The resize mode of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResizeMode {
    /// The middle square, with this many pixels on each side.
    Square(u32),
    /// The whole image (but see [`resize_short_side`]), with this many pixels on the shorter side.
    ShortSide(u32),
}

impl ResizeMode {
    /// The prefix of the cache files' names.
    fn kind(self) -> String {
        match self {
            Self::Square(size) => format!("squares-{size}"),
            Self::ShortSide(size) => format!("photographs-{size}"),
        }
    }

    /// Width and height of the result for an image of `size`, a width and a height.
    fn output_size(self, size: [u32; 2]) -> [u32; 2] {
        match self {
            Self::Square(side) => [side; 2],
            Self::ShortSide(short) => short_side_size(decode::decoded_size(size), short),
        }
    }

    fn decode(self, bytes: &[u8]) -> std::result::Result<RgbImage, String> {
        match self {
            Self::Square(size) => decode::decode_square(bytes, size),
            Self::ShortSide(short) => {
                decode::decode_with(bytes, |upright| resize_short_side(&upright.image, short))
            }
        }
    }
}

/// The reason why an image has no pixels.
enum DecodeFailure {
    /// The image cannot be decoded, now or later.
    Broken(String),
    /// The file has changed or cannot be read.
    Changed(String),
}

enum Pixels {
    Cached(CachedImages),
    Memory(Vec<u8>),
}

/// The images of a data set as bytes, in memory or in a mapped file.
pub struct ImageStore {
    pixels: Pixels,
    root: PathBuf,
    mode: ResizeMode,
    /// Width and height of each image, and the offset of its bytes, which are ordered by row, column, channel.
    layout: Vec<([u32; 2], usize)>,
    labels: Vec<u32>,
    paths: Vec<PathBuf>,
    /// The names of the classes, in the order of their labels.
    pub classes: Vec<String>,
    /// The fingerprint of the data set.
    pub fingerprint: String,
    /// The images that could not be decoded, by their path from the data folder, and the reasons.
    pub skipped: Vec<(PathBuf, String)>,
    /// Notes about the cache for the user, one line each: a file in it was damaged, or none could be written.
    pub notes: Vec<String>,
}

/// The images of a data set as squares of one size.
pub struct Images {
    size: u32,
    images: ImageStore,
}

/// The images of a data set, each with its own shape.
pub struct Photos(ImageStore);

impl ImageStore {
    fn load(data: &Dataset, mode: ResizeMode, limit: Option<usize>, cache: &Cache) -> Result<Self> {
        let selected = evenly_spaced(&data.files, limit);
        if selected.is_empty() {
            return Err(Error::no_images(&data.root, &data.skipped));
        }
        let (ResizeMode::Square(size) | ResizeMode::ShortSide(size)) = mode;
        let too_many = || Error::Memory { count: selected.len(), size };
        let mut layout = Vec::with_capacity(selected.len());
        let mut total = 0usize;
        for image in &selected {
            let shape = mode.output_size(image.size);
            layout.push((shape, total));
            let bytes = shape.iter().try_fold(3usize, |bytes, &side| bytes.checked_mul(side as usize));
            total = bytes.and_then(|bytes| total.checked_add(bytes)).ok_or_else(too_many)?;
        }
        let (images, pixels) = (selected.len() as u64, total as u64);
        let key = CacheKey { kind: mode.kind(), hash: hash(mode, &selected), pixels, images };
        let mut notes = Vec::new();
        let file = cache.folder().and_then(|folder| {
            let opened = key.open(&folder).unwrap_or_else(|note| {
                notes.push(note);
                None
            });
            opened
                .or_else(|| {
                    let created = key.create(&folder, |file| {
                        let offsets = layout.par_iter().map(|&(_, offset)| offset as u64);
                        decode_all(data, mode, &selected, offsets, |offset, bytes| {
                            write_at(file, bytes, offset)
                        })
                    });
                    let note =
                        |error| format!("{}: {error}; the images are kept in memory", folder.display());
                    created.map_err(|error| notes.push(note(error))).ok()
                })
                .map(|file| (file, key.path(&folder)))
        });
        let mut cached = None;
        let (pixels, reasons) = match file {
            Some(((mapped, index), path)) => {
                cached = Some((mapped, path, index.checksums));
                (Vec::new(), index.reasons)
            }
            None => {
                let mut pixels = Vec::new();
                pixels.try_reserve_exact(total).map_err(|_| too_many())?;
                pixels.resize(total, 0);
                let mut rest = &mut pixels[..];
                let ends = layout.iter().skip(1).map(|slot| slot.1).chain([total]);
                let parts = layout.iter().zip(ends).map(|(&(_, from), to)| to - from);
                let parts: Vec<&mut [u8]> =
                    parts.map(|len| rest.split_off_mut(..len).expect("slots are contiguous")).collect();
                let put = |slot: &mut [u8], bytes: &[u8]| -> io::Result<()> {
                    slot.copy_from_slice(bytes);
                    Ok(())
                };
                let (index, _) = decode_all(data, mode, &selected, parts.into_par_iter(), put)
                    .map_err(Error::io(&data.root))?;
                (pixels, index.reasons)
            }
        };
        let mut reasons = reasons.into_iter().peekable();
        let (mut labels, mut paths, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        let mut used_layout = Vec::with_capacity(selected.len());
        let mut used_indexes = Vec::with_capacity(selected.len());
        for ((i, image), slot) in selected.into_iter().enumerate().zip(layout) {
            if let Some((_, reason)) = reasons.next_if(|(number, _)| *number == i) {
                skipped.push((image.path.clone(), reason));
            } else {
                used_layout.push(slot);
                used_indexes.push(i);
                labels.push(image.label);
                paths.push(image.path.clone());
            }
        }
        if labels.is_empty() {
            return Err(Error::no_images(&data.root, &skipped));
        }
        let (classes, fingerprint) = (data.classes.clone(), data.fingerprint.clone());
        let pixels = match cached {
            Some((mapped, path, checksums)) => Pixels::Cached(CachedImages::new(
                mapped,
                path,
                used_indexes.into_iter().map(|i| checksums[i]),
            )),
            None => Pixels::Memory(pixels),
        };
        let root = data.root.clone();
        Ok(Self {
            pixels,
            root,
            mode,
            layout: used_layout,
            labels,
            paths,
            classes,
            fingerprint,
            skipped,
            notes,
        })
    }

    /// The number of images; at least one.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The class of image `index`, which must be less than [`ImageStore::len`].
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// The labels of all images.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The path of image `index` from the data folder.
    pub fn path(&self, index: usize) -> &Path {
        &self.paths[index]
    }

    /// Width and height of image `index`.
    pub fn dimensions(&self, index: usize) -> (u32, u32) {
        let [width, height] = self.layout[index].0;
        (width, height)
    }

    /// Writes the part of image `index` that `view` shows into `out`, `[3, size, size]`, with values from −1 (black) to 1. Values between
    /// pixels are interpolated linearly.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its pixels in the cache are damaged and it cannot be decoded again.
    ///
    /// # Panics
    /// If there is no such image, or `out` has another length.
    pub fn fill(&self, index: usize, view: &View, size: usize, out: &mut [f32]) -> Result<()> {
        let ([width, height], _) = self.layout[index];
        let bytes = self.bytes(index)?;
        view.fill(Bytes { bytes: &bytes, width: width as usize, height: height as usize }, size, out);
        Ok(())
    }

    fn bytes(&self, index: usize) -> Result<ImageBytes<'_>> {
        let (size, offset) = self.layout[index];
        match &self.pixels {
            Pixels::Memory(bytes) => Ok(ImageBytes::Borrowed(&bytes[offset..offset + byte_len(size)])),
            Pixels::Cached(cached) => {
                let path = self.root.join(&self.paths[index]);
                let decode = || decode::read(&path).and_then(|bytes| self.mode.decode(&bytes));
                cached.image(index, (offset, size), &path, decode)
            }
        }
    }
}

/// Decodes `selected` with all cores and passes the bytes of each image to `put`, with its slot. Each thread has one image in memory.
/// Returns the images' checksums and decoding errors, in order, and true if the result may be cached.
fn decode_all<P: Send>(
    data: &Dataset,
    mode: ResizeMode,
    selected: &[&ImageFile],
    layout: impl IndexedParallelIterator<Item = P>,
    put: impl Fn(P, &[u8]) -> io::Result<()> + Sync,
) -> io::Result<(CacheIndex, bool)> {
    let cacheable = AtomicBool::new(true);
    let decoded: Vec<std::result::Result<u32, String>> = (selected.par_iter().zip(layout))
        .map(|(image, slot)| {
            let reason = match decode_one(data, mode, image) {
                Ok(pixels) => return put(slot, &pixels).map(|()| Ok(checksum(&pixels))),
                Err(DecodeFailure::Broken(reason)) => reason,
                Err(DecodeFailure::Changed(reason)) => {
                    cacheable.store(false, Ordering::Relaxed);
                    reason
                }
            };
            Ok(Err(reason))
        })
        .collect::<io::Result<_>>()?;
    let mut index = CacheIndex::default();
    for (i, decoded) in decoded.into_iter().enumerate() {
        index.checksums.push(*decoded.as_ref().unwrap_or(&0));
        index.reasons.extend(decoded.err().map(|reason| (i, reason)));
    }
    Ok((index, cacheable.into_inner()))
}

fn decode_one(
    data: &Dataset,
    mode: ResizeMode,
    image: &ImageFile,
) -> std::result::Result<RgbImage, DecodeFailure> {
    let bytes = data.read(image).map_err(DecodeFailure::Changed)?;
    // The name of the cache file depends on the digest, so the pixels must be of that content.
    if <[u8; 32]>::from(Sha256::digest(&bytes)) != image.sha256 {
        return Err(DecodeFailure::Changed("changed since the data were opened".to_string()));
    }
    let pixels = mode.decode(&bytes).map_err(DecodeFailure::Broken)?;
    if [pixels.width(), pixels.height()] != mode.output_size(image.size) {
        let [width, height] = image.size;
        return Err(DecodeFailure::Broken(format!(
            "not an image of {width} x {height}, as listed in the index"
        )));
    }
    Ok(pixels)
}

/// SHA-256 over everything that the pixels depend on.
fn hash(mode: ResizeMode, selected: &[&ImageFile]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(mode.kind());
    hash.update([0]);
    hash.update(VERSION.to_le_bytes());
    for image in selected {
        hash.update(image.sha256);
        image.size.iter().for_each(|side| hash.update(side.to_le_bytes()));
    }
    hash.finalize().into()
}

impl Images {
    /// Decodes the images of `data`, or takes them from `cache`. They are turned upright, and the middle square of each is resized
    /// (Lanczos) to `size` × `size`, 8 to 1024 pixels.
    ///
    /// With a limit, that many evenly spaced images are loaded. Images that cannot be decoded are skipped: see [`ImageStore::skipped`].
    ///
    /// # Errors
    /// If `size` is out of range, memory is too small, or no image is left.
    pub fn load(data: &Dataset, size: u32, limit: Option<usize>, cache: &Cache) -> Result<Self> {
        if !(8..=1024).contains(&size) {
            return Err(Error::OutOfRange { name: "image size", value: size.into(), low: 8, high: 1024 });
        }
        Ok(Self { size, images: ImageStore::load(data, ResizeMode::Square(size), limit, cache)? })
    }

    /// Width and height of each image, in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }
}

impl Photos {
    /// Decodes the images of `data`, or takes them from `cache`. They are turned upright and resized (triangle filter, which PyTorch calls
    /// antialiased bilinear) so that the short side has `short` pixels.
    ///
    /// With a limit, that many evenly spaced images are loaded. Images that cannot be decoded are skipped: see [`ImageStore::skipped`].
    ///
    /// # Errors
    /// If `short` is out of range (8 to 2048 pixels), memory is too small, or there is no usable image.
    pub fn load(data: &Dataset, short: u32, limit: Option<usize>, cache: &Cache) -> Result<Self> {
        if !(8..=2048).contains(&short) {
            return Err(Error::OutOfRange { name: "short side", value: short.into(), low: 8, high: 2048 });
        }
        Ok(Self(ImageStore::load(data, ResizeMode::ShortSide(short), limit, cache)?))
    }
}

impl Deref for Images {
    type Target = ImageStore;

    fn deref(&self) -> &ImageStore {
        &self.images
    }
}

impl Deref for Photos {
    type Target = ImageStore;

    fn deref(&self) -> &ImageStore {
        &self.0
    }
}

/// All files, or `limit` of them, evenly spaced; at least one if there are files.
pub(crate) fn evenly_spaced(files: &[ImageFile], limit: Option<usize>) -> Vec<&ImageFile> {
    let all = files.len();
    let count = limit.map_or(all, |limit| limit.max(1).min(all));
    (0..count).map(|i| &files[i * all / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, Rgba, RgbaImage, codecs::jpeg::JpegEncoder};

    fn folder(images: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Dataset) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("A")).unwrap();
        for (name, bytes) in images {
            std::fs::write(dir.path().join("A").join(name), bytes).unwrap();
        }
        let data = Dataset::open(dir.path()).unwrap();
        (dir, data)
    }

    fn memory(data: &Dataset, limit: Option<usize>) -> Result<Images> {
        Images::load(data, 8, limit, &Cache::Memory)
    }

    fn png(image: impl Into<image::DynamicImage>) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pixel_values_are_in_channel_row_column_order() {
        let image = RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 30) as u8, (y * 30) as u8, 255]));
        let (_dir, data) = folder(&[("a.png", png(image.clone()))]);
        let images = memory(&data, None).unwrap();
        let (mut plain, mut flipped) = (vec![0.0; 192], vec![0.0; 192]);
        let all = View::full_image((8, 8));
        images.fill(0, &all, 8, &mut plain).unwrap();
        images.fill(0, &View { flip: true, ..all }, 8, &mut flipped).unwrap();
        for (x, y, pixel) in image.enumerate_pixels() {
            for channel in 0..3 {
                let cache = |x: u32| channel * 64 + (y * 8 + x) as usize;
                assert_eq!(plain[cache(x)], f32::from(pixel[channel]) / 127.5 - 1.0);
                assert_eq!(plain[cache(x)], flipped[cache(7 - x)]);
            }
        }
        assert_eq!(tiny_cats_export::to_rgb(&plain, 8), image);
    }

    #[test]
    fn images_are_rotated_cropped_and_composited_on_white() {
        // Stored rotated: its top is red, and orientation 6 means that its left side is the top.
        let rotated =
            RgbImage::from_fn(16, 32, |_, y| if y < 16 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) });
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 100);
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        encoder.set_exif_metadata(exif).unwrap();
        encoder.write_image(&rotated, 16, 32, ExtendedColorType::Rgb8).unwrap();
        let clear = RgbaImage::from_fn(32, 8, |x, _| {
            if (12..20).contains(&x) { Rgba([10, 20, 30, 0]) } else { Rgba([0, 0, 0, 255]) }
        });
        let (_dir, data) = folder(&[("a.jpg", jpeg), ("b.png", png(clear))]);
        let images = memory(&data, None).unwrap();
        let mut out = vec![0.0; 192];
        images.fill(0, &View::full_image((8, 8)), 8, &mut out).unwrap();
        // After a clockwise rotation, the top is at the right.
        assert!(out[..64].chunks(8).all(|row| row[0] < -0.9 && row[7] > 0.9), "{:?}", &out[..64]);
        images.fill(1, &View::full_image((8, 8)), 8, &mut out).unwrap();
        assert!(out.iter().all(|&value| value == 1.0));
    }

    #[test]
    fn a_limit_selects_evenly_spaced_images() {
        let images: Vec<_> = (0..10u8).map(|i| RgbImage::from_pixel(8, 8, Rgb([i * 25; 3]))).collect();
        let named: Vec<_> = images.iter().map(|p| (p.get_pixel(0, 0)[0], png(p.clone()))).collect();
        let named: Vec<_> = named.iter().map(|(v, bytes)| (format!("{v:03}.png"), bytes.clone())).collect();
        let named: Vec<_> = named.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let (_dir, data) = folder(&named);
        for (limit, expected) in [(0, vec![0]), (2, vec![0, 125]), (5, vec![0, 50, 100, 150, 200])] {
            let images = memory(&data, Some(limit)).unwrap();
            let first: Vec<u8> = (0..images.len()).map(|i| images.bytes(i).unwrap()[0]).collect();
            assert_eq!(first, expected);
        }
        assert_eq!(memory(&data, Some(99)).unwrap().len(), 10);
        assert!(Images::load(&data, 7, None, &Cache::Memory).is_err());
    }

    /// Ten images of several shapes, the last of which is damaged after its header.
    fn mixed() -> (tempfile::TempDir, Dataset) {
        let image =
            |i: u32| RgbImage::from_fn(9 + i * 3, 30 - i * 2, |x, y| Rgb([(x * y) as u8, y as u8, i as u8]));
        let mut files: Vec<_> = (0..10).map(|i| (format!("{i}.png"), png(image(i)))).collect();
        let last = &mut files[9].1;
        let middle = last.len() / 2;
        last[middle..middle + 20].fill(0);
        let named: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        folder(&named)
    }

    /// Size, label, path and bytes of an image.
    type ImageContent = ((u32, u32), u32, PathBuf, Vec<u8>);

    /// The contents of all images, as a network receives them.
    fn image_contents(store: &ImageStore) -> Vec<ImageContent> {
        let content = |i: usize| {
            (store.dimensions(i), store.label(i), store.path(i).into(), store.bytes(i).unwrap().to_vec())
        };
        (0..store.len()).map(content).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn images_are_the_same_from_memory_and_from_cache_files() {
        let (_dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().join("a/b"));
        let load = |cache: &Cache, square: bool| -> (Vec<_>, Vec<_>, Vec<String>) {
            let (images, photos);
            let store: &ImageStore = if square {
                images = Images::load(&data, 16, None, cache).unwrap();
                &images
            } else {
                photos = Photos::load(&data, 16, None, cache).unwrap();
                &photos
            };
            (image_contents(store), store.skipped.clone(), store.notes.clone())
        };
        for square in [true, false] {
            let expected = load(&Cache::Memory, square);
            assert_eq!((expected.0.len(), expected.1.len(), expected.2.len()), (9, 1, 0));
            assert!(expected.1[0].1.contains("broken PNG"), "{:?}", expected.1);
            assert_eq!(load(&cache, square), expected);
            let before = names(&folder.path().join("a/b"));
            assert_eq!(load(&cache, square), expected);
            assert_eq!(names(&folder.path().join("a/b")), before);
        }
        // One file for each resize mode, and nothing else. Its content does not depend on time or folder.
        let other = tempfile::tempdir().unwrap();
        Photos::load(&data, 16, None, &Cache::Folder(other.path().into())).unwrap();
        let (all, other_names) = (names(&folder.path().join("a/b")), names(other.path()));
        assert_eq!((all.len(), other_names.len()), (2, 1));
        assert!(all[0].starts_with("photographs-16-") && all[1].starts_with("squares-16-"), "{all:?}");
        let bytes = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
        assert!(bytes(other.path(), &other_names[0]) == bytes(&folder.path().join("a/b"), &all[0]));
    }

    #[test]
    fn cache_files_depend_only_on_content_order_and_size() {
        let (dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().into());
        let count = |data: &Dataset, size: u32, limit: Option<usize>| {
            assert!(Images::load(data, size, limit, &cache).unwrap().notes.is_empty());
            names(folder.path()).len()
        };
        assert_eq!(count(&data, 8, None), 1);
        assert_eq!(count(&data, 9, None), 2);
        assert_eq!(count(&data, 8, Some(5)), 3);
        // The cache does not depend on names and classes.
        std::fs::rename(dir.path().join("A"), dir.path().join("B")).unwrap();
        let renamed = Dataset::open(dir.path()).unwrap();
        assert_ne!(renamed.fingerprint, data.fingerprint);
        assert_eq!(count(&renamed, 8, None), 3);
        assert_eq!(Images::load(&renamed, 8, None, &cache).unwrap().path(0), Path::new("B/0.png"));
        let mut reversed = renamed;
        reversed.files.reverse();
        assert_eq!(count(&reversed, 8, None), 4);
    }

    #[test]
    fn damaged_cache_files_are_detected_and_rewritten() {
        let (_dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().into());
        let load = || Photos::load(&data, 12, None, &cache).unwrap();
        let expected = image_contents(&load());
        let path = folder.path().join(&names(folder.path())[0]);
        let good = std::fs::read(&path).unwrap();
        let end = good.len();
        let mut damaged: Vec<Vec<u8>> =
            [0, 1, 100, end / 2, end - 300, end - 1].iter().map(|&len| good[..len].to_vec()).collect();
        damaged.push([&good[..], b"x"].concat());
        // Every bit of the checksums, the reasons and the trailer matters.
        for offset in (end - 76 - 20 - 40..end).step_by(3) {
            let mut bytes = good.clone();
            bytes[offset] ^= 1 << (offset % 8);
            damaged.push(bytes);
        }
        for bytes in damaged {
            std::fs::write(&path, &bytes).unwrap();
            let photos = load();
            assert!(image_contents(&photos) == expected);
            let [note] = &photos.notes[..] else { panic!("{} bytes: {:?}", bytes.len(), photos.notes) };
            assert!(note.contains("rewritten") && !note.contains('\n'), "{note}");
            assert!(std::fs::read(&path).unwrap() == good);
        }
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn damaged_cached_images_are_decoded_again() {
        let (dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().into());
        let load = || Photos::load(&data, 12, None, &cache).unwrap();
        let expected = image_contents(&load());
        let path = folder.path().join(&names(folder.path())[0]);
        let good = std::fs::read(&path).unwrap();
        let pixels: usize = expected.iter().map(|image| image.3.len()).sum();
        for offset in (0..pixels).step_by(97).chain([pixels - 1]) {
            let mut bytes = good.clone();
            bytes[offset] ^= 1 << (offset % 8);
            std::fs::write(&path, &bytes).unwrap();
            let photos = load();
            assert!(photos.notes.is_empty() && image_contents(&photos) == expected);
            // Again, as in the next epoch.
            assert!(image_contents(&photos) == expected);
            assert!(names(folder.path()).is_empty());
            drop(photos);
            assert!(image_contents(&load()) == expected && std::fs::read(&path).unwrap() == good);
        }
        // If the image is missing or has changed by now, it is an error.
        let mut bytes = good.clone();
        bytes[0] ^= 1;
        for change in ["gone", "another"] {
            std::fs::write(&path, &bytes).unwrap();
            let photos = load();
            let first = dir.path().join("A/0.png");
            match change {
                "gone" => std::fs::remove_file(&first).unwrap(),
                _ => std::fs::copy(dir.path().join("A/1.png"), &first).map(|_| ()).unwrap(),
            }
            let error = photos.bytes(0).err().unwrap().to_string();
            assert!(error.contains("0.png") && error.contains("damaged") && !error.contains('\n'), "{error}");
            assert!(photos.bytes(1).is_ok());
        }
    }

    #[test]
    fn images_are_kept_in_memory_if_no_cache_file_can_be_written() {
        let (_dir, data) = mixed();
        let elsewhere = tempfile::tempdir().unwrap();
        let file = elsewhere.path().join("file");
        std::fs::write(&file, "no folder").unwrap();
        let expected = image_contents(&memory(&data, None).unwrap());
        let images = Images::load(&data, 8, None, &Cache::Folder(file)).unwrap();
        assert!(image_contents(&images) == expected);
        assert!(images.notes.len() == 1 && images.notes[0].contains("kept in memory"), "{:?}", images.notes);
        // If the disk becomes full during writing, no file is left.
        let key = CacheKey { kind: "squares-8".into(), hash: [0; 32], pixels: 1 << 20, images: 1 };
        let full = |file: &std::fs::File| {
            write_at(file, &[1; 1 << 16], 1 << 10)?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let folder = elsewhere.path().join("folder");
        assert!(key.create(&folder, full).is_err() && names(&folder).is_empty());
        // Nothing is written to a disk that is too small.
        let key = CacheKey { pixels: u64::MAX / 2, ..key };
        assert!(key.create(&folder, |_| panic!("written to")).is_err() && names(&folder).is_empty());
    }

    #[test]
    fn changed_images_are_not_cached() {
        let (dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().into());
        let path = dir.path().join("A/3.png");
        let before = std::fs::read(&path).unwrap();
        std::fs::copy(dir.path().join("A/4.png"), &path).unwrap();
        let images = Images::load(&data, 8, None, &cache).unwrap();
        assert_eq!(images.len(), 8);
        assert!(images.skipped[0].1.contains("changed since"), "{:?}", images.skipped);
        drop(images);
        assert!(names(folder.path()).is_empty());
        std::fs::write(&path, before).unwrap();
        assert_eq!(Images::load(&data, 8, None, &cache).unwrap().len(), 9);
        // A wrong size in an index is detected.
        let mut rotated = data;
        rotated.files[0].size = [300, 2];
        let photos = Photos::load(&rotated, 8, None, &cache).unwrap();
        assert!(photos.skipped[0].1.contains("as listed in the index"), "{:?}", photos.skipped);
    }

    #[test]
    fn concurrent_loads_write_one_file() {
        let (_dir, data) = mixed();
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::Folder(folder.path().into());
        let expected = image_contents(&memory(&data, None).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let images = Images::load(&data, 8, None, &cache).unwrap();
                    assert!(
                        images.notes.is_empty() && image_contents(&images) == expected,
                        "{:?}",
                        images.notes
                    );
                });
            }
        });
        assert_eq!(names(folder.path()).len(), 1);
    }
}
