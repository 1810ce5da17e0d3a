//! Charts for terminals, drawn with Braille characters of eight dots each.

use std::fmt::Write as _;

pub use crate::axis::format_number;
use crate::{axis::Range, train::metrics::Point};

/// The smallest width of a chart, which leaves room for its legend.
const MIN_WIDTH: usize = 60;
/// The number of lines of the plot without axes.
const LINES: usize = 12;
/// The bits of a character's dots, by column and line.
const DOTS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];
/// The width of an axis's numbers; [`format_number`] returns at most as many characters.
const LABEL: usize = 10;
/// The character of the second curve. It is one column wide in every terminal.
const MARK: char = 'o';

/// A curve, with its points in the order of their steps.
#[derive(Clone, Copy, Debug)]
pub struct Curve<'a> {
    /// The name of its metric.
    pub name: &'a str,
    /// Its points. Those that are not finite are gaps.
    pub points: &'a [Point],
}

/// The points in one column of the plot.
#[derive(Clone, Copy, Default)]
struct Column {
    /// Number of points, finite or not.
    points: u32,
    /// Number of finite points.
    finite: u32,
    /// The mean of the finite points.
    mean: f64,
}

/// Returns the position of `value` among `n`, 0 the lowest.
fn index(range: Range, value: f64, n: usize) -> usize {
    let share = range.normalize(value);
    // A range of one value would divide by zero; the value is then in the middle.
    let share = if share.is_finite() { share } else { 0.5 };
    ((share * n as f64) as usize).min(n - 1)
}

fn value_at(range: Range, share: f64) -> f64 {
    range.min * (1.0 - share) + range.max * share
}

/// Groups points by columns and averages each, so that a million points can be drawn.
fn columns(points: &[Point], steps: Range, n: usize) -> Vec<Column> {
    let mut columns = vec![Column::default(); n];
    for point in points {
        let column = &mut columns[index(steps, point.step as f64, n)];
        column.points += 1;
        if point.value.is_finite() {
            column.finite += 1;
            let weight = 1.0 / f64::from(column.finite);
            column.mean = column.mean * (1.0 - weight) + point.value * weight;
        }
    }
    columns
}

fn means(columns: &[Column]) -> impl Iterator<Item = f64> {
    columns.iter().filter(|c| c.finite > 0).map(|c| c.mean)
}

/// Draws `first`, and over it `second` as marks: on the same scale if `same`, else on its own scale at the right.
///
/// Every line has at most `width` characters, but `width` is at least 60. `color` adds escape codes for terminals.
pub fn draw(first: Curve, second: Option<Curve>, same: bool, width: usize, color: bool) -> String {
    let width = width.max(MIN_WIDTH);
    let second = second.filter(|curve| curve.points.iter().any(|p| p.value.is_finite()));
    if !first.points.iter().any(|p| p.value.is_finite()) && second.is_none() {
        let kind = if first.points.is_empty() { "" } else { "finite " };
        return format!("no {kind}{} has been logged\n", first.name);
    }
    let all = first.points.iter().chain(second.iter().flat_map(|curve| curve.points));
    let steps = Range::from_values(all.map(|p| p.step as f64)).unwrap_or_default();
    let has_own_scale = second.is_some() && !same;
    let plot = width - LABEL - 2 - if has_own_scale { LABEL + 2 } else { 0 };
    let dots = columns(first.points, steps, 2 * plot);
    let marks = second.map_or(Vec::new(), |curve| columns(curve.points, steps, plot));
    let scales = match (Range::from_values(means(&dots)), Range::from_values(means(&marks))) {
        (Some(first), Some(second)) if has_own_scale => [first, second],
        _ => [Range::from_values(means(&dots).chain(means(&marks))).unwrap_or_default(); 2],
    };
    let cells = paint(&dots, &marks, scales, plot);

    let (dim, bright, reset) = if color { ("\x1b[36m", "\x1b[33m", "\x1b[0m") } else { ("", "", "") };
    let truncate = |name: &str, max_chars: usize| name.chars().take(max_chars).collect::<String>();
    let mut out = format!("{:LABEL$}  {dim}{}{reset}", "", truncate(first.name, 10));
    if let Some(second) = second {
        let axis = if has_own_scale { " (right)" } else { "" };
        let _ = write!(out, "   {bright}{MARK} {}{axis}{reset}", truncate(second.name, 24));
    }
    out.push('\n');
    for (line, cells) in cells.iter().enumerate() {
        let share = 1.0 - line as f64 / (LINES - 1) as f64;
        let is_labeled = [0, LINES / 2, LINES - 1].contains(&line);
        let [left, right] = scales
            .map(|scale| if is_labeled { format_number(value_at(scale, share)) } else { String::new() });
        let axis = if is_labeled { ['┤', '├'] } else { ['│', '│'] };
        let _ = write!(out, "{left:>LABEL$} {}", axis[0]);
        let mut last = "";
        for &cell in cells {
            let new = if cell == MARK { bright } else { dim };
            if new != last && cell != ' ' {
                let _ = write!(out, "{new}");
                last = new;
            }
            out.push(cell);
        }
        out.push_str(if last.is_empty() { "" } else { reset });
        if has_own_scale {
            let _ = write!(out, "{} {right}", axis[1]);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    let _ = writeln!(out, "{:LABEL$} └{}", "", "─".repeat(plot));
    let format_step = |step: f64| if step < 1e9 { step.to_string() } else { format_number(step) };
    let (from, to) = (format_step(steps.min), format!("step {}", format_step(steps.max)));
    let room = plot.saturating_sub(from.len());
    let _ = writeln!(out, "{:LABEL$}  {from}{to:>room$}", "");
    let missing = first.points.iter().filter(|p| !p.value.is_finite()).count();
    if missing > 0 {
        let _ = writeln!(out, "{:LABEL$}  {missing} of {} not finite", "", first.points.len());
    }
    out
}

/// The plot's characters, line by line from the top.
fn paint(dots: &[Column], marks: &[Column], scales: [Range; 2], plot: usize) -> Vec<Vec<char>> {
    let mut bits = vec![vec![0u8; plot]; LINES];
    let mut set = |x: usize, y: usize| {
        let y = 4 * LINES - 1 - y;
        bits[y / 4][x / 2] |= DOTS[x % 2][y % 4];
    };
    let mut previous: Option<(usize, usize)> = None;
    for (x, column) in dots.iter().enumerate() {
        if column.finite == 0 {
            // Between two logged steps the curve is connected, but not across values that are not finite.
            previous = previous.filter(|_| column.points == 0);
            continue;
        }
        let y = index(scales[0], column.mean, 4 * LINES);
        let (from, mut last) = previous.unwrap_or((x, y));
        for step in 0..=x - from {
            let current = match x - from {
                0 => y,
                width => {
                    let start = previous.map_or(y, |(_, y)| y);
                    (start * (width - step) + y * step + width / 2) / width
                }
            };
            (last.min(current)..=last.max(current)).for_each(|y| set(from + step, y));
            last = current;
        }
        previous = Some((x, y));
    }
    let braille = |bits: u8| char::from_u32(0x2800 + u32::from(bits)).filter(|_| bits > 0).unwrap_or(' ');
    let mut cells: Vec<Vec<char>> =
        bits.into_iter().map(|line| line.into_iter().map(braille).collect()).collect();
    for (x, column) in marks.iter().enumerate().filter(|(_, column)| column.finite > 0) {
        cells[LINES - 1 - index(scales[1], column.mean, LINES)][x] = MARK;
    }
    cells
}

#[cfg(test)]
mod tests {
    use tiny_cats_models::random::{Purpose, Stream};

    use super::*;

    fn points(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        values.into_iter().enumerate().map(|(i, value)| Point { step: 10 * (i as u64 + 1), value }).collect()
    }

    fn curve<'a>(name: &'a str, points: &'a [Point]) -> Curve<'a> {
        Curve { name, points }
    }

    #[test]
    fn falling_curves_are_drawn_with_marked_scores() {
        let loss = points((0..100).map(|i| 2.0 - f64::from(i) / 100.0));
        let score = [Point { step: 500, value: 0.25 }, Point { step: 1000, value: 0.75 }];
        let text = draw(curve("loss", &loss), Some(curve("validation_accuracy", &score)), false, 60, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), LINES + 3, "{text}");
        assert!(lines[0].contains("loss   o validation_accuracy (right)"), "{text}");
        assert!(lines[1].starts_with("    1.9950 ┤"), "{text}");
        assert!(lines[LINES].contains("0.2500") && lines[1].ends_with("0.7500"), "{text}");
        assert!(lines[LINES + 2].ends_with("step 1000"), "{text}");
        // The curve falls from left to right.
        let column = |line: &str, x: usize| line.chars().nth(x).unwrap_or(' ');
        let first = |x: usize| lines[1..=LINES].iter().position(|line| column(line, x) != ' ').unwrap();
        assert_eq!(first(12), 0, "{text}");
        assert!(
            (13..45).all(|x| first(x - 1) <= first(x) || column(lines[1 + first(x)], x) == MARK),
            "{text}"
        );
        assert_eq!(
            text.matches(MARK).count() - "loss o validation_accuracy step".matches('o').count(),
            2,
            "{text}"
        );
        // Without colors there are no escape codes.
        assert!(!text.contains('\x1b'));
        let colored = draw(curve("loss", &loss), None, false, 60, true);
        let plain = colored.replace("\x1b[36m", "").replace("\x1b[0m", "");
        let plain: String = plain.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
        assert_eq!(plain, draw(curve("loss", &loss), None, false, 60, false));
    }

    /// Any points give a chart with all its lines, and no line is too wide.
    #[test]
    fn any_points_give_a_chart_within_the_width() {
        let special_values = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MAX,
            f64::MIN,
            5e-324,
            1e-9,
        ];
        for case in 0..400 {
            let mut rng = Stream::new(1, Purpose::Order, case);
            let mut random_points = |max: u32| {
                let n = rng.uniform_int(max);
                let mut step = 0u64;
                let point = |_| {
                    step = step
                        .saturating_add(u64::from(rng.uniform_int(3)).saturating_pow(rng.uniform_int(70)));
                    let value = match rng.uniform_int(3) {
                        0 => special_values[rng.uniform_int(special_values.len() as u32) as usize],
                        1 => rng.uniform(),
                        _ => rng.normal() * 10f64.powi(rng.uniform_int(600) as i32 - 300),
                    };
                    Point { step, value }
                };
                (0..n).map(point).collect::<Vec<_>>()
            };
            let (loss, score) = (random_points(1 << (case % 10)), random_points(12));
            let width = 20 + (case as usize * 7) % 200;
            let text = draw(curve("loss", &loss), Some(curve("score", &score)), case % 2 == 0, width, false);
            let finite = loss.iter().chain(&score).filter(|p| p.value.is_finite()).count();
            let missing = loss.iter().any(|p| !p.value.is_finite());
            let lines = if finite == 0 { 1 } else { LINES + 3 + usize::from(missing) };
            assert_eq!(text.lines().count(), lines, "{case}:\n{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= width.max(MIN_WIDTH), "{case}, {width}:\n{text}");
            }
        }
    }

    #[test]
    fn few_and_constant_points_are_drawn() {
        assert_eq!(draw(curve("loss", &[]), None, true, 80, false), "no loss has been logged\n");
        let not_finite = points([f64::NAN]);
        assert_eq!(
            draw(curve("loss", &not_finite), None, true, 80, false),
            "no finite loss has been logged\n"
        );
        let braille = |text: &str| text.chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count();
        assert_eq!(braille(&draw(curve("loss", &points([1.5])), None, true, 80, false)), 1);
        let text = draw(curve("loss", &points([1.5; 9])), None, true, 80, false);
        assert_eq!(braille(&text), 80 - LABEL - 2, "{text}");
        // A value that is not finite interrupts the curve and is counted.
        let gap = points([1.0, 1.0, f64::NAN, 1.0, 1.0]);
        let text = draw(curve("loss", &gap), None, true, 80, false);
        assert!(braille(&text) < 80 - LABEL - 2 - 20 && text.contains("1 of 5 not finite"), "{text}");
    }

    #[test]
    fn numbers_have_about_five_digits() {
        for (value, text) in [
            (0.0, "0.0000"),
            (0.25, "0.2500"),
            (1.5, "1.5000"),
            (12.345, "12.345"),
            (99_999.0, "99999"),
            (1e5, "1.00e5"),
            (-1e-5, "-1.00e-5"),
            (f64::MAX, "1.80e308"),
            (f64::NAN, "not finite"),
        ] {
            assert_eq!(format_number(value), text);
            assert!(format_number(-value).len() <= LABEL);
        }
    }
}
