//! A small painter of smooth closed outlines. They are filled with exact area coverage, so that edges are anti-aliased without
//! supersampling.
//!
//! Coordinates are in image units: (0, 0) is the top left corner, (1, 1) the bottom right one, for any size in pixels.

use image::{Rgb, RgbImage};

use super::noise::Noise;

/// A point, or a direction, in image units.
pub type Point = [f32; 2];
/// Red, green, blue, each in [0, 1].
pub type Color = [f32; 3];

/// Interpolates linearly: `a` at `t` = 0, `b` at `t` = 1.
pub fn mix(a: Color, b: Color, t: f32) -> Color {
    let t = t.clamp(0.0, 1.0);
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

/// Scales the brightness of `color`: lighter for a `gain` over 1, darker below it.
pub fn shade(color: Color, gain: f32) -> Color {
    color.map(|c| c * gain)
}

/// The smooth closed curve through `points` (Catmull-Rom, six segments from one point to the next).
pub fn smooth(points: &[Point]) -> Vec<Point> {
    const PIECES: usize = 6;
    let n = points.len();
    let mut curve = Vec::with_capacity(n * PIECES);
    for i in 0..n {
        let [a, b, c, d] = [points[(i + n - 1) % n], points[i], points[(i + 1) % n], points[(i + 2) % n]];
        for piece in 0..PIECES {
            let t = piece as f32 / PIECES as f32;
            let along = |k: usize| {
                let bend = 2.0 * a[k] - 5.0 * b[k] + 4.0 * c[k] - d[k];
                let twist = 3.0 * (b[k] - c[k]) + d[k] - a[k];
                b[k] + 0.5 * t * (c[k] - a[k] + t * (bend + t * twist))
            };
            curve.push([along(0), along(1)]);
        }
    }
    curve
}

/// An ellipse about `center`, turned by `angle` radians.
pub fn ellipse(center: Point, radii: Point, angle: f32) -> Vec<Point> {
    const PIECES: usize = 28;
    let (sin, cos) = angle.sin_cos();
    let on = |i: usize| {
        let (s, c) = (i as f32 * std::f32::consts::TAU / PIECES as f32).sin_cos();
        let (x, y) = (c * radii[0], s * radii[1]);
        [center[0] + x * cos - y * sin, center[1] + x * sin + y * cos]
    };
    (0..PIECES).map(on).collect()
}

/// A stroke along the bent line from `from` over `over` to `to`, `width` wide at its start and pointed at its end.
pub fn hair(from: Point, over: Point, to: Point, width: f32) -> Vec<Point> {
    const PIECES: usize = 5;
    let at =
        |t: f32, k: usize| (1.0 - t) * (1.0 - t) * from[k] + 2.0 * t * (1.0 - t) * over[k] + t * t * to[k];
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let length = (dx * dx + dy * dy).sqrt().max(1e-6);
    let across = [-dy / length * width / 2.0, dx / length * width / 2.0];
    let side = |i: usize, sign: f32| {
        let t = i as f32 / PIECES as f32;
        let half = sign * (1.0 - t * t);
        [at(t, 0) + across[0] * half, at(t, 1) + across[1] * half]
    };
    (0..=PIECES).map(|i| side(i, 1.0)).chain((0..PIECES).rev().map(|i| side(i, -1.0))).collect()
}

/// The coverage of each pixel in a rectangle of the image by an outline.
#[derive(Clone)]
pub struct Mask {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    covered: Vec<f32>,
}

impl Mask {
    /// The coverage of pixel (`x`, `y`), in [0, 1].
    fn coverage(&self, x: usize, y: usize) -> f32 {
        let (column, row) = (x.wrapping_sub(self.left), y.wrapping_sub(self.top));
        if column < self.width && row < self.height { self.covered[row * self.width + column] } else { 0.0 }
    }
}

/// A square image to paint on.
pub struct Canvas {
    size: usize,
    pixels: Vec<Color>,
    /// The texture of surfaces such as fur, skin and grass.
    pub noise: Noise,
}

impl Canvas {
    /// Creates an image of `size` × `size` pixels, colored by position.
    pub fn new(size: u32, noise: Noise, paint: impl Fn(Point) -> Color) -> Self {
        let size = size as usize;
        let center = |i: usize| (i as f32 + 0.5) / size as f32;
        let pixels = (0..size * size).map(|i| paint([center(i % size), center(i / size)])).collect();
        Self { size, pixels, noise }
    }

    /// The area that the outline covers. A self-intersecting outline covers the area that it encloses.
    ///
    /// Each edge adds, row by row, the signed area between itself and the right side of the rectangle. The running sum along a row is then
    /// the covered part of each pixel.
    pub fn mask(&self, outline: &[Point]) -> Mask {
        let scale = self.size as f32;
        let bound = |k: usize| {
            let values = || outline.iter().map(|p| p[k] * scale);
            let low = values().fold(f32::INFINITY, f32::min).floor().clamp(0.0, scale);
            let high = values().fold(f32::NEG_INFINITY, f32::max).ceil().clamp(low, scale);
            (low as usize, (high - low) as usize)
        };
        let ((left, width), (top, height)) = (bound(0), bound(1));
        let mut covered = vec![0.0; width * height];
        if width > 0 && height > 0 {
            let place =
                |p: Point| [(p[0] * scale - left as f32).clamp(0.0, width as f32), p[1] * scale - top as f32];
            for (i, &from) in outline.iter().enumerate() {
                add_edge(&mut covered, width, height, place(from), place(outline[(i + 1) % outline.len()]));
            }
            for row in covered.chunks_exact_mut(width) {
                let mut sum = 0.0;
                for value in row {
                    sum += *value;
                    *value = sum.abs().min(1.0);
                }
            }
        }
        Mask { left, top, width, height, covered }
    }

    /// Paints the area of `mask`, within `within` if set, with a color and an opacity by position.
    pub fn fill(
        &mut self,
        mask: &Mask,
        within: Option<&Mask>,
        paint: impl Fn(Point, &Noise) -> (Color, f32),
    ) {
        for row in 0..mask.height {
            for column in 0..mask.width {
                let (x, y) = (mask.left + column, mask.top + row);
                let covered =
                    mask.covered[row * mask.width + column] * within.map_or(1.0, |w| w.coverage(x, y));
                if covered > 0.002 {
                    let at = [(x as f32 + 0.5) / self.size as f32, (y as f32 + 0.5) / self.size as f32];
                    let (color, opacity) = paint(at, &self.noise);
                    let pixel = &mut self.pixels[y * self.size + x];
                    *pixel = mix(*pixel, color, covered * opacity);
                }
            }
        }
    }

    /// Paints the inside of `outline` in one color.
    pub fn flat(&mut self, outline: &[Point], within: Option<&Mask>, color: Color, opacity: f32) {
        self.fill(&self.mask(outline), within, |_, _| (color, opacity));
    }

    /// Paints a spot that fades from its center to its rim.
    pub fn glow(&mut self, center: Point, radii: Point, within: Option<&Mask>, color: Color, opacity: f32) {
        let [[x, y], [rx, ry]] = [center, radii];
        let mask = self.mask(&[[x - rx, y - ry], [x + rx, y - ry], [x + rx, y + ry], [x - rx, y + ry]]);
        self.fill(&mask, within, |p, _| {
            let (dx, dy) = ((p[0] - x) / rx, (p[1] - y) / ry);
            let inside = (1.0 - dx * dx - dy * dy).max(0.0);
            (color, opacity * inside * inside * (3.0 - 2.0 * inside))
        });
    }

    /// Returns the image, after each color was changed by `light`, which also gets the position.
    pub fn finish(self, light: impl Fn(Point, Color) -> Color) -> RgbImage {
        let size = self.size;
        RgbImage::from_fn(size as u32, size as u32, |x, y| {
            let at = [(x as f32 + 0.5) / size as f32, (y as f32 + 0.5) / size as f32];
            let color = light(at, self.pixels[y as usize * size + x as usize]);
            Rgb(color.map(|c| (c * 255.0).round().clamp(0.0, 255.0) as u8))
        })
    }
}

/// Adds the coverage of the edge from `a` to `b`, in pixels of a rectangle of `width` × `height` that contains every x.
fn add_edge(covered: &mut [f32], width: usize, height: usize, a: Point, b: Point) {
    if a[1] == b[1] {
        return;
    }
    let (sign, a, b) = if a[1] < b[1] { (1.0, a, b) } else { (-1.0, b, a) };
    let slope = (b[0] - a[0]) / (b[1] - a[1]);
    let last = (b[1].ceil().max(0.0) as usize).min(height);
    for row in a[1].max(0.0) as usize..last {
        let (y0, y1) = (a[1].max(row as f32), b[1].min(row as f32 + 1.0));
        if y1 <= y0 {
            continue;
        }
        let x_at = |y: f32| (a[0] + (y - a[1]) * slope).clamp(0.0, width as f32);
        let (x0, x1) = (x_at(y0), x_at(y1));
        let (x0, x1) = (x0.min(x1), x0.max(x1));
        let line = &mut covered[row * width..(row + 1) * width];
        // The part of the edge in each pixel that it crosses; everything to the right of the edge is inside.
        let (first, end) = (x0 as usize, (x1.ceil() as usize).max(x0 as usize + 1));
        for column in first..end {
            let (l, r) = (x0.max(column as f32), x1.min(column as f32 + 1.0));
            let part = if x1 > x0 { (r - l) / (x1 - x0) } else { 1.0 } * (y1 - y0) * sign;
            let right = (column as f32 + 1.0 - (l + r) / 2.0).clamp(0.0, 1.0);
            if let Some(value) = line.get_mut(column) {
                *value += part * right;
            }
            if let Some(value) = line.get_mut(column + 1) {
                *value += part * (1.0 - right);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(outline: &[Point]) -> f32 {
        let canvas = Canvas::new(40, Noise::flat(), |_| [0.0; 3]);
        canvas.mask(outline).covered.iter().sum::<f32>() / 1600.0
    }

    #[test]
    fn mask_coverage_equals_the_outline_area() {
        let (sin, cos) = 0.3f32.sin_cos();
        for shift in [0.0, 0.003, 0.011] {
            let turned = [[-0.2, -0.1], [0.2, -0.1], [0.2, 0.1], [-0.2, 0.1]]
                .map(|[x, y]: Point| [0.5 + shift + x * cos - y * sin, 0.5 + x * sin + y * cos]);
            assert!((area(&turned) - 0.08).abs() < 1e-4, "{}", area(&turned));
            let round = ellipse([0.5 + shift, 0.4], [0.3, 0.2], 0.7);
            assert!((area(&round) - std::f32::consts::PI * 0.06).abs() < 2e-3);
        }
    }

    #[test]
    fn outlines_are_clipped_to_the_image() {
        let half = [[-3.0, 0.5], [4.0, 0.5], [4.0, 9.0], [-3.0, 9.0]];
        assert!((area(&half) - 0.5).abs() < 1e-4);
        assert_eq!(area(&[[2.0, 2.0], [3.0, 2.0], [3.0, 3.0]]), 0.0);
        assert_eq!(area(&[]), 0.0);
    }
}
