//! Random augmentation of training images.

use serde::{Deserialize, Serialize};
use tiny_cats_models::random::{Purpose, Stream};

use super::{ColorJitter, View};

/// The strength of the augmentation of training images. Each level adds to the one before it, with the same random numbers.
///
/// A classifier must ignore how a photograph was taken, so its augmentation is strong ([`View::for_classifier`]). A generator learns the
/// distribution of its images. Augmentation *leaks* into its output unless the data are as likely to show the augmented image as the
/// original (Karras et al. 2020, arXiv 2006.06676, section 2.2). Its augmentation ([`View::for_generator`]) therefore stays within the
/// variation among photographs of the same cats. It never shows a border, neither black nor mirrored, because no photograph has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AugmentLevel {
    /// No augmentation.
    None,
    /// Mirrors half of the images.
    Basic,
    /// Also shows only a part of each image, of random size and position.
    Medium,
    /// Also tilts the image and varies its colors.
    #[default]
    Full,
}

/// The random numbers for one image.
struct AugmentRng(Stream);

impl AugmentRng {
    fn new(seed: u64, position: u64) -> Self {
        Self(Stream::new(seed, Purpose::Augment, position))
    }

    fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.uniform() as f32
    }

    fn flip(&mut self) -> bool {
        self.range(0.0, 1.0) <= 0.5
    }

    fn color(&mut self, max: f32) -> ColorJitter {
        ColorJitter {
            brightness: self.range(-max, max),
            contrast: self.range(1.0 - max, 1.0 + max),
            saturation: self.range(1.0 - max, 1.0 + max),
        }
    }
}

impl View {
    /// The view of a square image of `side` pixels at `position` (of [`Order`](super::Order)) for a generator. It depends only on its
    /// arguments.
    ///
    /// - [`AugmentLevel::Basic`] mirrors half of the images.
    /// - [`AugmentLevel::Medium`] shows a square of 90 to 100 % of the side. This changes size and position less than the heads in cropped
    ///   photographs differ.
    /// - [`AugmentLevel::Full`] tilts that square by up to 5°, like cats' heads in photographs, but keeps all corners inside the image.
    ///   Brightness, contrast and saturation vary by up to 4 %, like exposure. Larger changes would make breeds that differ in
    ///   color, such as Russian Blue and Bombay, look alike.
    pub fn for_generator(level: AugmentLevel, seed: u64, position: u64, side: u32) -> Self {
        const MIN_SCALE: f32 = 0.9;
        let mut rng = AugmentRng::new(seed, position);
        let mut view = Self::full_image((side, side));
        if level >= AugmentLevel::Basic {
            view.flip = rng.flip();
        }
        if level >= AugmentLevel::Medium {
            let side = side as f32;
            let scale = rng.range(MIN_SCALE, 1.0);
            // In fractions of the margin, so that tilting reduces the margin and not the scale.
            let shift = [rng.range(-0.5, 0.5), rng.range(-0.5, 0.5)];
            let mut margin = 1.0 - scale;
            if level == AugmentLevel::Full {
                // A square of side s, tilted by a, has a bounding box of side s·(cos a + sin a) = s·√2·sin(45° + a).
                let max_angle = (1.0 / (scale * std::f32::consts::SQRT_2)).min(1.0).asin();
                let max = (max_angle - std::f32::consts::FRAC_PI_4).clamp(0.0, 5f32.to_radians());
                view.tilt = rng.range(-max, max);
                margin = (1.0 - scale * (view.tilt.cos() + view.tilt.abs().sin())).max(0.0);
                view.color = rng.color(0.04);
            }
            view.extent = [scale * side; 2];
            view.origin = shift.map(|shift| ((1.0 - scale) * 0.5 + shift * margin) * side);
        }
        view
    }

    /// The view of a photograph of this width and height at `position` (of [`Order`](super::Order)) for a classifier. It depends only on
    /// its arguments.
    ///
    /// - [`AugmentLevel::None`] shows the center square of `side` pixels; [`AugmentLevel::Basic`] mirrors half of them.
    /// - [`AugmentLevel::Medium`] shows a part instead, of 30 to 100 % of the area with an aspect ratio of 3:4 to 4:3 (arXiv 1409.4842).
    /// - [`AugmentLevel::Full`] tilts that part by up to 10° and shifts it by up to 5 % of its sides. Outside of the photograph, it is
    ///   mirrored at the border. Brightness, contrast and saturation vary by up to 30 %.
    pub fn for_classifier(
        level: AugmentLevel,
        seed: u64,
        position: u64,
        shape: (u32, u32),
        side: u32,
    ) -> Self {
        const ATTEMPTS: usize = 10;
        let mut rng = AugmentRng::new(seed, position);
        let mut view = Self::center(shape, side);
        if level >= AugmentLevel::Basic {
            view.flip = rng.flip();
        }
        if level >= AugmentLevel::Medium {
            let (width, height) = (shape.0 as f32, shape.1 as f32);
            for _ in 0..ATTEMPTS {
                let area = width * height * rng.range(0.3, 1.0);
                let aspect = rng.range((0.75f32).ln(), (4.0f32 / 3.0).ln()).exp();
                let extent = [(area * aspect).sqrt(), (area / aspect).sqrt()];
                if extent[0] <= width && extent[1] <= height {
                    view.origin = [rng.range(0.0, width - extent[0]), rng.range(0.0, height - extent[1])];
                    view.extent = extent;
                    break;
                }
            }
        }
        if level == AugmentLevel::Full {
            let max = 10f32.to_radians();
            view.tilt = rng.range(-max, max);
            for (origin, extent) in view.origin.iter_mut().zip(view.extent) {
                *origin += extent * rng.range(-0.05, 0.05);
            }
            view.color = rng.color(0.3);
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [AugmentLevel; 4] =
        [AugmentLevel::None, AugmentLevel::Basic, AugmentLevel::Medium, AugmentLevel::Full];

    /// The corners of the part that a view shows.
    fn corners(view: &View) -> [[f32; 2]; 4] {
        [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]].map(|[x, y]| {
            let (x, y) = (x * view.extent[0], y * view.extent[1]);
            let (sin, cos) = view.tilt.sin_cos();
            let center = [0, 1].map(|i| view.origin[i] + view.extent[i] / 2.0);
            [center[0] + x * cos - y * sin, center[1] + x * sin + y * cos]
        })
    }

    #[test]
    fn generator_views_stay_inside_the_image_and_levels_are_cumulative() {
        let (side, mut flips, mut max_tilt) = (64, 0, 0.0f32);
        for position in 0..2000 {
            let view = |level| View::for_generator(level, 1, position, side);
            let [none, basic, medium, full] = LEVELS.map(view);
            assert_eq!(full, view(AugmentLevel::Full));
            assert_eq!(none, View::full_image((side, side)));
            assert_eq!(basic, View { flip: basic.flip, ..none });
            assert_eq!(medium, View { origin: medium.origin, extent: medium.extent, ..basic });
            assert_eq!((full.flip, full.extent), (medium.flip, medium.extent));
            assert!((0.9 * 64.0..=64.0).contains(&medium.extent[0]));
            for view in [medium, full] {
                let inside =
                    |[x, y]: [f32; 2]| (-1e-3..=64.001).contains(&x) && (-1e-3..=64.001).contains(&y);
                assert!(corners(&view).into_iter().all(inside), "{view:?}");
            }
            flips += u32::from(basic.flip);
            max_tilt = max_tilt.max(full.tilt.abs().to_degrees());
        }
        assert!((900..1100).contains(&flips), "{flips}");
        assert!((4.0..=5.001).contains(&max_tilt), "{max_tilt}");
    }

    #[test]
    fn classifier_levels_are_cumulative_for_any_image_shape() {
        for (i, shape) in [(160, 240), (240, 160), (16, 1000), (1000, 16), (8, 8)].into_iter().enumerate() {
            for position in 0..300 {
                let view = |level| View::for_classifier(level, i as u64, position, shape, 128);
                let [none, basic, medium, full] = LEVELS.map(view);
                assert_eq!(full, view(AugmentLevel::Full));
                assert_eq!(none, View::center(shape, 128));
                assert_eq!(basic, View { flip: basic.flip, ..none });
                assert_eq!(medium, View { origin: medium.origin, extent: medium.extent, ..basic });
                assert_eq!((full.flip, full.extent), (medium.flip, medium.extent));
                assert!(full.tilt.abs().to_degrees() <= 10.001);
                for (axis, len) in [shape.0, shape.1].into_iter().enumerate() {
                    let (origin, extent) = (medium.origin[axis], medium.extent[axis]);
                    assert!(origin >= 0.0 && origin + extent <= len as f32 + 1e-3 && extent > 0.0);
                    assert!((full.origin[axis] - origin).abs() <= 0.0501 * extent);
                }
            }
        }
    }
}
