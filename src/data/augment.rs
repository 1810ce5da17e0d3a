//! Changes to a training picture that leave it what it is.

use serde::{Deserialize, Serialize};
use tiny_cats_models::random::{Purpose, Stream};

/// How much training pictures are changed: for the generator as said here (a generator draws what it is shown, so changes are small),
/// for the classifier as [`View::draw`](super::View::draw) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Not at all.
    None,
    /// Half of them are mirrored.
    Basic,
    /// Besides, a part of 85 to 100 % of their side is shown.
    Medium,
    /// Besides, brightness, contrast and saturation vary by up to 10 %.
    #[default]
    Full,
}

/// How colours are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// What is added to each value.
    pub brightness: f32,
    /// By how much values are scaled.
    pub contrast: f32,
    /// By how much the distance of values from grey is scaled.
    pub saturation: f32,
}

impl Default for Colour {
    fn default() -> Self {
        Self { brightness: 0.0, contrast: 1.0, saturation: 1.0 }
    }
}

impl Colour {
    /// Changes the three planes of `values`, from −1 (black) to 1.
    pub(super) fn apply(&self, values: &mut [f32]) {
        if *self == Self::default() {
            return;
        }
        let plane = values.len() / 3;
        let (red, rest) = values.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            // The luma of ITU-R BT.601.
            let grey = 0.299 * *r + 0.587 * *g + 0.114 * *b;
            for value in [r, g, b] {
                let saturated = grey + (*value - grey) * self.saturation;
                *value = (saturated * self.contrast + self.brightness).clamp(-1.0, 1.0);
            }
        }
    }
}

/// What is done to one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    /// Whether it is mirrored.
    pub flip: bool,
    /// The side of the part that is shown, 1 for all of the picture.
    pub zoom: f32,
    /// Where that part begins, across and down; at most `1 − zoom`.
    pub offset: [f32; 2],
    /// How its colours are changed.
    pub colour: Colour,
}

impl Augmentation {
    /// What is done to the picture at `position` (of [`Order`](super::Order)): it depends on nothing else but the seed.
    pub fn draw(level: Level, seed: u64, position: u64) -> Self {
        let mut stream = Stream::new(seed, Purpose::Augment, position);
        let mut range = |low: f32, high: f32| low + (high - low) * stream.uniform() as f32;
        let mut all = Self { flip: false, zoom: 1.0, offset: [0.0; 2], colour: Colour::default() };
        if level != Level::None {
            all.flip = range(0.0, 1.0) <= 0.5;
        }
        if matches!(level, Level::Medium | Level::Full) {
            all.zoom = range(0.85, 1.0);
            all.offset = [range(0.0, 1.0 - all.zoom), range(0.0, 1.0 - all.zoom)];
        }
        if level == Level::Full {
            all.colour = Colour {
                brightness: range(-0.1, 0.1),
                contrast: range(0.9, 1.1),
                saturation: range(0.9, 1.1),
            };
        }
        all
    }

    /// Changes the `3 · side²` values of a picture, all but the mirroring.
    pub(super) fn apply(&self, side: usize, values: &mut [f32]) {
        if self.zoom < 1.0 {
            let lines = [0, 1].map(|axis| self.taps(side, self.offset[axis]));
            for plane in values.chunks_exact_mut(side * side) {
                let from = plane.to_vec();
                for (line, &(top, bottom, down)) in plane.chunks_exact_mut(side).zip(&lines[1]) {
                    for (value, &(left, right, across)) in line.iter_mut().zip(&lines[0]) {
                        let at = |row: usize| {
                            from[row * side + left] * (1.0 - across) + from[row * side + right] * across
                        };
                        *value = at(top) * (1.0 - down) + at(bottom) * down;
                    }
                }
            }
        }
        self.colour.apply(values);
    }

    /// Along one axis, the two pixels that each pixel of the part is between, and how near it is to the second.
    fn taps(&self, side: usize, offset: f32) -> Vec<(usize, usize, f32)> {
        (0..side)
            .map(|i| {
                let place =
                    (offset * side as f32 + (i as f32 + 0.5) * self.zoom - 0.5).clamp(0.0, side as f32 - 1.0);
                let first = place as usize;
                (first, (first + 1).min(side - 1), place - first as f32)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_changes_what_it_says_and_keeps_the_range() {
        let picture: Vec<f32> = (0..3 * 256).map(|i| ((i * 37 % 256) as f32) / 127.5 - 1.0).collect();
        let mut flips = 0;
        for position in 0..200 {
            let of = |level| Augmentation::draw(level, 1, position);
            let (none, basic, medium, full) =
                (of(Level::None), of(Level::Basic), of(Level::Medium), of(Level::Full));
            assert_eq!(full, of(Level::Full));
            assert_eq!(basic, Augmentation { flip: basic.flip, ..none });
            assert_eq!((medium.flip, full.flip), (basic.flip, basic.flip));
            assert_eq!((medium.zoom, medium.offset), (full.zoom, full.offset));
            assert!((0.85..=1.0).contains(&full.zoom) && full.offset.iter().all(|o| o + full.zoom <= 1.0));
            flips += u32::from(basic.flip);
            let mut changed = picture.clone();
            full.apply(16, &mut changed);
            assert!(changed != picture && changed.iter().all(|v| v.abs() <= 1.0));
        }
        assert!((70..130).contains(&flips), "{flips}");
    }

    #[test]
    fn a_part_of_a_ramp_is_the_ramp_in_the_part() {
        let side = 20;
        let mut values: Vec<f32> = (0..3 * side * side).map(|i| (i % side) as f32 * 0.1 - 1.0).collect();
        let part = Augmentation { zoom: 0.8, offset: [0.1, 0.2], ..Augmentation::draw(Level::None, 0, 0) };
        part.apply(side, &mut values);
        for (i, value) in values.iter().enumerate() {
            let place = 2.0 + ((i % side) as f32 + 0.5) * 0.8 - 0.5;
            assert!((value - (place * 0.1 - 1.0)).abs() < 1e-5);
        }
    }
}
