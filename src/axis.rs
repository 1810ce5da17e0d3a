//! The axes of charts in terminals and images: ranges, round values in them, and numbers as text.

/// The range of values along one axis.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    pub min: f64,
    pub max: f64,
    /// True for a logarithmic scale.
    pub log: bool,
}

impl Range {
    /// The range of all finite `values`; `None` if there are none.
    pub fn from_values(values: impl Iterator<Item = f64>) -> Option<Self> {
        let ends = |(min, max): (f64, f64), v: f64| (min.min(v), max.max(v));
        let (min, max) = values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        (min <= max).then_some(Self { min, max, log: false })
    }

    /// Adds a margin. If `may_log`, the range becomes logarithmic for positive values that span more than one and a half decades.
    pub fn with_margin(self, may_log: bool) -> Self {
        let Self { min, max, .. } = self;
        if may_log && min > 0.0 && max / min > 30.0 {
            // More than twelve decades are not readable.
            let min = min.max(max * 1e-12);
            let margin = (max / min).powf(0.04);
            return Self { min: min / margin, max: max * margin, log: true };
        }
        // Halves the values first, so that the difference of the largest ones is finite.
        let spread = 2.0 * (max / 2.0 - min / 2.0);
        let size = min.abs().max(max.abs());
        // Constant values get a margin, too.
        let margin = if spread > 1e-3 * size { 0.06 * spread } else { (0.1 * size).max(1e-9) };
        Self { min: min - margin, max: max + margin, log: false }
    }

    /// Maps the smallest value to 0 and the largest to 1; values outside of the range map outside of 0 to 1. A range of one value gives NaN.
    pub fn normalize(&self, value: f64) -> f64 {
        let to_scale = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let (min, max) = (to_scale(self.min), to_scale(self.max));
        // Halves the numbers, so that the difference of the largest ones is finite.
        (to_scale(value) / 2.0 - min / 2.0) / (max / 2.0 - min / 2.0)
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
pub fn steps_label(value: f64) -> String {
    let short = |value: f64, unit: &str| format!("{}{unit}", label((value * 100.0).round() / 100.0));
    match value {
        v if v >= 1e9 => short(v / 1e9, "G"),
        v if v >= 1e6 => short(v / 1e6, "M"),
        v if v >= 1e4 => short(v / 1e3, "k"),
        v => format!("{v:.0}"),
    }
}

/// Formats a number for an axis or a table with about five digits, in at most ten characters.
pub fn format_number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.2e}");
    }
    let integer_digits = if size < 1.0 { 0 } else { size.log10() as usize };
    format!("{value:.*}", 4usize.saturating_sub(integer_digits))
}
