//! Drawing of lines, axes and text.

use image::{Rgb, RgbImage};
use tiny_cats_export::{draw_text, text_size};

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

/// The range of values along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    pub min: f64,
    pub max: f64,
    /// True for a logarithmic scale.
    pub log: bool,
}

impl Range {
    /// The range of all finite `values`, with a margin; `None` if there are none. If `may_log`, it is logarithmic for positive values that
    /// span more than one and a half decades.
    pub fn from_values(values: impl Iterator<Item = f64>, may_log: bool) -> Option<Self> {
        let ends = |(min, max): (f64, f64), v: f64| (min.min(v), max.max(v));
        let (min, max) = values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        if min > max {
            return None;
        }
        if may_log && min > 0.0 && max / min > 30.0 {
            // More than twelve decades are not readable.
            let min = min.max(max * 1e-12);
            let margin = (max / min).powf(0.04);
            return Some(Self { min: min / margin, max: max * margin, log: true });
        }
        // Halves the values first, so that the difference of the largest ones is finite.
        let spread = 2.0 * (max / 2.0 - min / 2.0);
        let size = min.abs().max(max.abs());
        // Constant values get a margin, too.
        let margin = if spread > 1e-3 * size { 0.06 * spread } else { (0.1 * size).max(1e-9) };
        Some(Self { min: min - margin, max: max + margin, log: false })
    }

    /// Maps the smallest value to 0 and the largest to 1; values outside of the range map outside of 0 to 1.
    pub fn normalize(&self, value: f64) -> f64 {
        let to_scale = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let (min, max) = (to_scale(self.min), to_scale(self.max));
        (to_scale(value) - min) / (max - min)
    }

    /// About four to ten round values in the range.
    pub fn ticks(&self) -> Vec<f64> {
        if self.log {
            let exponents = self.min.log10().floor() as i32..=self.max.log10().ceil() as i32;
            let decades = self.max.log10() - self.min.log10();
            let steps: &[f64] = if decades < 3.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let every = ((decades / 8.0).ceil() as i32).max(1);
            let all = exponents
                .filter(|e| e % every == 0)
                .flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
            return all.filter(|v| (self.min..=self.max).contains(v)).collect();
        }
        let min_step = (self.max - self.min) / 5.0;
        let decade = 10f64.powf(min_step.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|s| s * decade)
            .into_iter()
            .find(|s| *s >= min_step)
            .unwrap_or(min_step);
        let first = (self.min / step).ceil();
        (0..20).map(|i| (first + f64::from(i)) * step).take_while(|v| *v <= self.max).collect()
    }
}

/// Formats a number with few digits.
pub fn label(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let decimals = (2 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Formats a number of steps.
pub fn count(value: f64) -> String {
    let short = |value: f64, unit: &str| format!("{}{unit}", label((value * 100.0).round() / 100.0));
    match value {
        v if v >= 1e9 => short(v / 1e9, "G"),
        v if v >= 1e6 => short(v / 1e6, "M"),
        v if v >= 1e4 => short(v / 1e3, "k"),
        v => format!("{v:.0}"),
    }
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
            self.text(&count(tick), px, bottom + 10.0, Align::Middle, TEXT_COLOR);
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
