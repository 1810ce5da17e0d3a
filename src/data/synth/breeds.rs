//! The appearance of each breed.

use super::paint::Color;

/// Converts a color as in a style sheet, `0xRRGGBB`.
const fn rgb(hex: u32) -> Color {
    [(hex >> 16 & 255) as f32 / 255.0, (hex >> 8 & 255) as f32 / 255.0, (hex & 255) as f32 / 255.0]
}

/// The distribution of a coat's darker color.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// One color only.
    Solid,
    /// The tip of each hair.
    Ticked,
    /// Spots on the body, lines on the face.
    Spotted,
    /// Stripes.
    Tabby,
    /// Ears and face: a mask.
    Pointed,
    /// Ears and face, except for a white wedge from forehead to chin.
    Bicolor,
    /// Wrinkles instead of fur.
    Bare,
}

/// The colors of a coat; each image has one of its breed's coats.
pub struct Coat {
    /// The color of most of the animal.
    pub base: Color,
    /// The color of chin, muzzle and chest.
    pub under: Color,
    /// The color of the pattern.
    pub mark: Color,
}

/// The appearance of a breed. Lengths are in units of half the height of a head.
pub struct Look {
    /// The coats that occur.
    pub coats: &'static [Coat],
    /// The distribution of `mark` on the coat.
    pub pattern: Pattern,
    /// Half the width across the cheeks.
    pub width: f32,
    /// Half the width of the chin.
    pub jaw: f32,
    /// Length of the hairs that stand out.
    pub fluff: f32,
    /// Height of the ears above the skull.
    pub ear: f32,
    /// Half the width of the ears at their base.
    pub ear_base: f32,
    /// Distance by which the tips of the ears lean outward.
    pub ear_lean: f32,
    /// True if the tips of the ears have tufts.
    pub tufts: bool,
    /// Half the width of an eye.
    pub eye: f32,
    /// Height of an eye divided by its width; 1 is round.
    pub open: f32,
    /// Angle by which the outer corners of the eyes are raised, in radians.
    pub slant: f32,
    /// The possible colors of the eyes.
    pub irises: &'static [Color],
    /// The color of the tip of the nose.
    pub nose: Color,
    /// Distance of the nose below the middle of the head.
    pub nose_at: f32,
    /// Half the width of the neck.
    pub neck: f32,
}

const BLUE: Color = rgb(0x5fb4f5);
const GREEN: Color = rgb(0x9fd05a);
const GOLD: Color = rgb(0xf2b632);
const COPPER: Color = rgb(0xe8862a);
const PINK: Color = rgb(0xd98b8b);
const BRICK: Color = rgb(0xa85a48);
const SOOT: Color = rgb(0x2c2627);

/// The appearance of the breeds, in the order of [`crate::data::BREEDS`].
pub static LOOKS: [Look; 12] = [
    // Abyssinian: ruddy, ticked, large ears, almond eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xc47a3c), under: rgb(0xe8b27a), mark: rgb(0x6b3a1c) },
            Coat { base: rgb(0xb8672f), under: rgb(0xdfa56a), mark: rgb(0x5a2f18) },
            Coat { base: rgb(0xd39a5e), under: rgb(0xf0cd9c), mark: rgb(0x82522c) },
        ],
        pattern: Pattern::Ticked,
        width: 0.96,
        jaw: 0.40,
        fluff: 0.05,
        ear: 0.86,
        ear_base: 0.44,
        ear_lean: 0.20,
        tufts: false,
        eye: 0.22,
        open: 0.74,
        slant: 0.22,
        irises: &[GOLD, GREEN],
        nose: BRICK,
        nose_at: 0.40,
        neck: 0.62,
    },
    // Bengal: golden with dark spots.
    Look {
        coats: &[
            Coat { base: rgb(0xd69a4e), under: rgb(0xf6e3c2), mark: rgb(0x2e1a0e) },
            Coat { base: rgb(0xc98238), under: rgb(0xf0d6ac), mark: rgb(0x24140c) },
        ],
        pattern: Pattern::Spotted,
        width: 0.98,
        jaw: 0.44,
        fluff: 0.04,
        ear: 0.60,
        ear_base: 0.36,
        ear_lean: 0.12,
        tufts: false,
        eye: 0.21,
        open: 0.80,
        slant: 0.18,
        irises: &[GREEN, rgb(0xc9c04a)],
        nose: BRICK,
        nose_at: 0.42,
        neck: 0.74,
    },
    // Birman: gold-beige, fluffy, a seal mask to the chin, sapphire eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xeadfc8), under: rgb(0xf7f0e2), mark: rgb(0x4a362c) },
            Coat { base: rgb(0xe4d6bd), under: rgb(0xf5ecdb), mark: rgb(0x55423a) },
        ],
        pattern: Pattern::Pointed,
        width: 1.08,
        jaw: 0.56,
        fluff: 0.26,
        ear: 0.48,
        ear_base: 0.36,
        ear_lean: 0.16,
        tufts: false,
        eye: 0.21,
        open: 0.90,
        slant: 0.10,
        irises: &[BLUE],
        nose: SOOT,
        nose_at: 0.38,
        neck: 0.98,
    },
    // Bombay: black and glossy, with gold eyes.
    Look {
        coats: &[
            Coat { base: rgb(0x1c191c), under: rgb(0x262226), mark: rgb(0x0e0c0e) },
            Coat { base: rgb(0x221d1d), under: rgb(0x2c2626), mark: rgb(0x120f0f) },
        ],
        pattern: Pattern::Solid,
        width: 1.02,
        jaw: 0.50,
        fluff: 0.03,
        ear: 0.58,
        ear_base: 0.37,
        ear_lean: 0.12,
        tufts: false,
        eye: 0.23,
        open: 0.92,
        slant: 0.10,
        irises: &[GOLD, rgb(0xf0a020)],
        nose: rgb(0x141112),
        nose_at: 0.38,
        neck: 0.72,
    },
    // British Shorthair: blue-gray, round all over, copper eyes.
    Look {
        coats: &[
            Coat { base: rgb(0x7f8a99), under: rgb(0x97a1ae), mark: rgb(0x5b6470) },
            Coat { base: rgb(0x74808f), under: rgb(0x8d98a6), mark: rgb(0x525c69) },
        ],
        pattern: Pattern::Solid,
        width: 1.20,
        jaw: 0.72,
        fluff: 0.07,
        ear: 0.34,
        ear_base: 0.32,
        ear_lean: 0.22,
        tufts: false,
        eye: 0.23,
        open: 1.0,
        slant: 0.0,
        irises: &[COPPER, rgb(0xf09a34)],
        nose: rgb(0x4a4f5c),
        nose_at: 0.34,
        neck: 1.06,
    },
    // Egyptian Mau: silver with charcoal spots, gooseberry eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xc3c6c8), under: rgb(0xeceeee), mark: rgb(0x2b2c30) },
            Coat { base: rgb(0xb3b7ba), under: rgb(0xe2e5e6), mark: rgb(0x26272b) },
        ],
        pattern: Pattern::Spotted,
        width: 0.96,
        jaw: 0.42,
        fluff: 0.04,
        ear: 0.68,
        ear_base: 0.38,
        ear_lean: 0.14,
        tufts: false,
        eye: 0.23,
        open: 0.84,
        slant: 0.16,
        irises: &[rgb(0xbfe07a), rgb(0xa8d66a)],
        nose: BRICK,
        nose_at: 0.40,
        neck: 0.66,
    },
    // Maine Coon: shaggy brown tabby, square muzzle, lynx tufts.
    Look {
        coats: &[
            Coat { base: rgb(0x8f6d4a), under: rgb(0xe9dcc6), mark: rgb(0x33231a) },
            Coat { base: rgb(0x7d6046), under: rgb(0xdccdb6), mark: rgb(0x2a1f18) },
        ],
        pattern: Pattern::Tabby,
        width: 1.02,
        jaw: 0.60,
        fluff: 0.32,
        ear: 0.78,
        ear_base: 0.38,
        ear_lean: 0.10,
        tufts: true,
        eye: 0.20,
        open: 0.84,
        slant: 0.20,
        irises: &[GOLD, GREEN],
        nose: BRICK,
        nose_at: 0.44,
        neck: 1.02,
    },
    // Persian: cream cloud with a flat face, tiny ears and huge eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xf0d9b0), under: rgb(0xfaeed6), mark: rgb(0xd9b27c) },
            Coat { base: rgb(0xe9bf86), under: rgb(0xf6deb8), mark: rgb(0xc98f52) },
            Coat { base: rgb(0xf4e8d4), under: rgb(0xfdf7ec), mark: rgb(0xdfc8a2) },
        ],
        pattern: Pattern::Solid,
        width: 1.24,
        jaw: 0.78,
        fluff: 0.36,
        ear: 0.16,
        ear_base: 0.27,
        ear_lean: 0.30,
        tufts: false,
        eye: 0.25,
        open: 1.0,
        slant: -0.06,
        irises: &[COPPER, GOLD],
        nose: PINK,
        nose_at: 0.14,
        neck: 1.30,
    },
    // Ragdoll: blue-gray points parted by a white wedge, pale blue eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xeef0f2), under: rgb(0xffffff), mark: rgb(0x7c8492) },
            Coat { base: rgb(0xe9eaee), under: rgb(0xfbfcff), mark: rgb(0x8d8f9c) },
        ],
        pattern: Pattern::Bicolor,
        width: 1.10,
        jaw: 0.56,
        fluff: 0.24,
        ear: 0.48,
        ear_base: 0.35,
        ear_lean: 0.18,
        tufts: false,
        eye: 0.22,
        open: 0.90,
        slant: 0.10,
        irises: &[rgb(0x7cc4f8), BLUE],
        nose: PINK,
        nose_at: 0.38,
        neck: 1.02,
    },
    // Russian Blue: slim, blue-gray with a silver sheen, emerald eyes.
    Look {
        coats: &[
            Coat { base: rgb(0x66727f), under: rgb(0x7d8996), mark: rgb(0x47515d) },
            Coat { base: rgb(0x707b88), under: rgb(0x8792a0), mark: rgb(0x4f5964) },
        ],
        pattern: Pattern::Solid,
        width: 0.92,
        jaw: 0.40,
        fluff: 0.03,
        ear: 0.78,
        ear_base: 0.37,
        ear_lean: 0.10,
        tufts: false,
        eye: 0.21,
        open: 0.80,
        slant: 0.18,
        irises: &[rgb(0x6fdc6a), rgb(0x8be06a)],
        nose: rgb(0x474b57),
        nose_at: 0.42,
        neck: 0.58,
    },
    // Siamese: a cream wedge with a sharp dark mask, bat ears, slanted blue eyes.
    Look {
        coats: &[
            Coat { base: rgb(0xe6d2b2), under: rgb(0xd9c19d), mark: rgb(0x2e211d) },
            Coat { base: rgb(0xddc39c), under: rgb(0xceb28a), mark: rgb(0x35261f) },
        ],
        pattern: Pattern::Pointed,
        width: 0.88,
        jaw: 0.30,
        fluff: 0.02,
        ear: 0.86,
        ear_base: 0.46,
        ear_lean: 0.36,
        tufts: false,
        eye: 0.21,
        open: 0.66,
        slant: 0.34,
        irises: &[rgb(0x4aa8ff), BLUE],
        nose: rgb(0x1d1615),
        nose_at: 0.46,
        neck: 0.52,
    },
    // Sphynx: pink skin, wrinkles, enormous ears.
    Look {
        coats: &[
            Coat { base: rgb(0xe8b8a6), under: rgb(0xf3cfc0), mark: rgb(0xb87c70) },
            Coat { base: rgb(0xdfa898), under: rgb(0xeec3b5), mark: rgb(0xa96d64) },
        ],
        pattern: Pattern::Bare,
        width: 0.90,
        jaw: 0.36,
        fluff: 0.0,
        ear: 1.08,
        ear_base: 0.52,
        ear_lean: 0.32,
        tufts: false,
        eye: 0.25,
        open: 0.82,
        slant: 0.20,
        irises: &[rgb(0x8fd0c8), GOLD, rgb(0x9ccf8a)],
        nose: PINK,
        nose_at: 0.40,
        neck: 0.50,
    },
];
