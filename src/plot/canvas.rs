//! Drawing of lines, axes and text.

use image::{Rgb, RgbImage};
use tiny_cats_export::{draw_text, text_size};

use crate::axis::{Range, label, steps_label};

pub const BACKGROUND: Rgb<u8> = Rgb([250, 249, 246]);
pub const TEXT_COLOR: Rgb<u8> = Rgb([40, 38, 36]);
const RULE: Rgb<u8> = Rgb([226, 223, 216]);
/// The text scale.
pub const SCALE: u32 = 2;

/// The distance by which lines may exceed the plot, in pixels, so that dots on its edge are complete.
const SLACK: f64 = 4.0;

/// The alignment of text at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Middle,
    Right,
}

/// An image with a plot.
pub struct Canvas {
    pub image: RgbImage,
    /// Left, top, right and bottom edge of the plot, in pixels.
    frame: [f64; 4],
}

impl Canvas {
    /// Creates an image of `width` × `height` pixels, with margins in pixels: left, top, right, bottom.
    pub fn new(width: u32, height: u32, [left, top, right, bottom]: [u32; 4]) -> Self {
        let frame = [left, top, width - right, height - bottom].map(f64::from);
        Self { image: RgbImage::from_pixel(width, height, BACKGROUND), frame }
    }

    /// The pixel of a point: (0, 0) is the lower left corner of the plot, (1, 1) the upper right one.
    fn pixel(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let [left, top, right, bottom] = self.frame;
        [left + x * (right - left), bottom - y.clamp(-0.5, 1.5) * (bottom - top)]
    }

    /// Mixes `color` into a pixel of the plot.
    fn mix(&mut self, x: i64, y: i64, color: Rgb<u8>, share: f64) {
        let [left, top, right, bottom] = self.frame;
        let (fx, fy) = (x as f64, y as f64);
        if fx < left - SLACK || fx > right + SLACK || fy < top - SLACK || fy > bottom + SLACK {
            return;
        }
        let Some(pixel) = self.image.get_pixel_mut_checked(x as u32, y as u32) else { return };
        for (old, new) in pixel.0.iter_mut().zip(color.0) {
            *old = (f64::from(*old) * (1.0 - share) + f64::from(new) * share).round() as u8;
        }
    }

    /// Draws a line through `points`, `width` pixels wide; a single point is a dot.
    pub fn line(&mut self, points: &[[f64; 2]], width: f64, color: Rgb<u8>) {
        let pixels: Vec<[f64; 2]> = points.iter().map(|p| self.pixel(*p)).collect();
        if let [point] = pixels[..] {
            self.segment(point, point, 3.0 * width, color);
        }
        for pair in pixels.windows(2) {
            self.segment(pair[0], pair[1], width, color);
        }
    }

    /// Draws dots at `points`.
    pub fn dots(&mut self, points: &[[f64; 2]], width: f64, color: Rgb<u8>) {
        for point in points {
            let at = self.pixel(*point);
            self.segment(at, at, width, color);
        }
    }

    /// Draws an anti-aliased line from `a` to `b`.
    fn segment(&mut self, a: [f64; 2], b: [f64; 2], width: f64, color: Rgb<u8>) {
        let reach = width / 2.0 + 1.0;
        let direction = [b[0] - a[0], b[1] - a[1]];
        let length_squared = direction[0].powi(2) + direction[1].powi(2);
        let ends = |i: usize| ((a[i].min(b[i]) - reach) as i64, (a[i].max(b[i]) + reach).ceil() as i64);
        let ((x0, x1), (y0, y1)) = (ends(0), ends(1));
        for (x, y) in (x0..=x1).flat_map(|x| (y0..=y1).map(move |y| (x, y))) {
            let offset = [x as f64 - a[0], y as f64 - a[1]];
            let t = if length_squared > 0.0 {
                (offset[0] * direction[0] + offset[1] * direction[1]) / length_squared
            } else {
                0.0
            };
            let t = t.clamp(0.0, 1.0);
            let distance = (offset[0] - t * direction[0]).hypot(offset[1] - t * direction[1]);
            let share = (width / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
            if share > 0.0 {
                self.mix(x, y, color, share);
            }
        }
    }

    /// Draws a vertical line at `x` from one height to another.
    pub fn column(&mut self, x: f64, [low, high]: [f64; 2], color: Rgb<u8>) {
        let ([x, bottom], [_, top]) =
            (self.pixel([x, low.clamp(0.0, 1.0)]), self.pixel([x, high.clamp(0.0, 1.0)]));
        (top.round() as i64..=bottom.round() as i64).for_each(|y| self.mix(x.round() as i64, y, color, 0.5));
    }

    /// Draws the axis of steps at the bottom, with a grid line for each.
    pub fn draw_step_axis(&mut self, range: &Range) {
        for tick in range.ticks().into_iter().filter(|tick| tick.fract() == 0.0) {
            let x = range.normalize(tick);
            let [px, bottom] = self.pixel([x, 0.0]);
            self.rule([x, 0.0], [x, 1.0]);
            self.text(&steps_label(tick), px, bottom + 10.0, Align::Middle, TEXT_COLOR);
        }
        let [middle, bottom] = self.pixel([0.5, 0.0]);
        self.text("step", middle, bottom + 32.0, Align::Middle, TEXT_COLOR);
    }

    /// Draws an axis of values: at the left side with a grid line for each, or at the right side.
    pub fn draw_value_axis(&mut self, range: &Range, side: Align, color: Rgb<u8>) {
        for tick in range.ticks() {
            let y = range.normalize(tick);
            let (x, align, text_offset) =
                if side == Align::Left { (0.0, Align::Right, -10.0) } else { (1.0, Align::Left, 10.0) };
            let [px, py] = self.pixel([x, y]);
            if side == Align::Left {
                self.rule([0.0, y], [1.0, y]);
            }
            self.text(&label(tick), px + text_offset, py - 7.0, align, color);
        }
    }

    fn rule(&mut self, a: [f64; 2], b: [f64; 2]) {
        let (a, b) = (self.pixel(a).map(f64::round), self.pixel(b).map(f64::round));
        self.segment(a, b, 1.0, RULE);
    }

    /// Draws text whose upper edge is at `y`.
    pub fn text(&mut self, text: &str, x: f64, y: f64, align: Align, color: Rgb<u8>) {
        let width = f64::from(text_size(text, SCALE).0);
        let x = match align {
            Align::Left => x,
            Align::Middle => x - width / 2.0,
            Align::Right => x - width,
        };
        draw_text(&mut self.image, text, x.max(0.0) as u32, y.max(0.0) as u32, SCALE, color);
    }
}
