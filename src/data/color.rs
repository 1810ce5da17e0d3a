//! Changes of colors.

/// A change of colors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    /// The value that is added to each channel.
    pub brightness: f32,
    /// The factor of each channel.
    pub contrast: f32,
    /// The factor of each channel's distance from gray.
    pub saturation: f32,
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self { brightness: 0.0, contrast: 1.0, saturation: 1.0 }
    }
}

impl ColorJitter {
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
            let gray = 0.299 * *r + 0.587 * *g + 0.114 * *b;
            for value in [r, g, b] {
                let saturated = gray + (*value - gray) * self.saturation;
                *value = (saturated * self.contrast + self.brightness).clamp(-1.0, 1.0);
            }
        }
    }
}
