//! Limits of the region, time and cost of a training.

use std::time::Duration;

use super::{CloudSettings, Error, Result};
use crate::plan::{Prices, assumptions};

/// The limits of the region, time and cost of a training. The default is the limits of the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CostLimits {
    /// Timeout of an attempt; `None` for that of the plan.
    pub timeout: Option<Duration>,
    /// Maximum cost in dollars.
    pub max_cost: Option<f64>,
    /// Modal's name of the region; `None` for any, which is cheaper.
    pub region: Option<String>,
    /// Maximum number of retries after failed attempts; `None` for that of the plan.
    pub max_retries: Option<u64>,
}

impl CostLimits {
    /// Adds the surcharge for a region to prices.
    pub fn prices(&self, prices: Prices, settings: &CloudSettings) -> Prices {
        if self.region.is_some() { prices.with_factor(settings.price.region) } else { prices }
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// [`Error::Setting`] with the first field that is out of range.
    pub fn validate(&self, settings: &CloudSettings) -> Result<()> {
        let max_timeout = Duration::from_secs_f64(settings.time.longest_attempt_s);
        // The time to start, to make progress, and to stop.
        let min_timeout = Duration::from_secs_f64(assumptions::START_S + settings.time.stop_before_s + 60.0);
        if let Some(timeout) = self.timeout.filter(|timeout| !(min_timeout..=max_timeout).contains(timeout)) {
            let [min_timeout, max_timeout, found] =
                [min_timeout, max_timeout, timeout].map(humantime::format_duration);
            let message = format!("expected {min_timeout} to {max_timeout}, found {found}");
            return Err(Error::setting("timeout", message));
        }
        let (max_retries, max_allowed) = (self.max_retries.unwrap_or(0), settings.retries.max);
        if max_retries > max_allowed {
            let message = format!("expected 0 to {max_allowed}, found {max_retries}");
            return Err(Error::setting("max_retries", message));
        }
        if let Some(dollars) = self.max_cost.filter(|dollars| !(*dollars > 0.0 && dollars.is_finite())) {
            return Err(Error::setting("max_cost", format!("expected more than 0 dollars, found {dollars}")));
        }
        if let Some(region) = &self.region {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-,".contains(c);
            if region.is_empty() || !region.chars().all(is_allowed) {
                let message = format!("expected a name such as us-east, found {}", region.escape_debug());
                return Err(Error::setting("region", message));
            }
        }
        Ok(())
    }

    /// Checks that an expected cost is within the maximum cost. `dollars` is `None` if a price is unknown.
    ///
    /// # Errors
    /// If the cost is higher, or there is a maximum and the cost is unknown.
    pub fn check_cost(&self, dollars: Option<f64>) -> Result<()> {
        let Some(max) = self.max_cost else { return Ok(()) };
        let dollars = dollars.ok_or(Error::NoPrice)?;
        if dollars > max {
            let message =
                format!("the expected cost of ${dollars:.2} exceeds ${max:.2}; nothing was started");
            return Err(Error::setting("max_cost", message));
        }
        Ok(())
    }
}

/// Parses a duration such as `4h`, or a number of seconds, as the app does.
///
/// # Errors
/// If the text is neither.
pub fn parse_timeout(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_rejected() {
        let settings = CloudSettings::default();
        let limits = CostLimits::default;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let too_many = Some(settings.retries.max + 1);
        for (limits, field) in [
            (CostLimits { timeout: seconds(5), ..limits() }, "timeout"),
            (CostLimits { max_retries: too_many, ..limits() }, "max_retries"),
            (CostLimits { max_cost: Some(f64::NAN), ..limits() }, "max_cost"),
            (CostLimits { region: Some("us east".into()), ..limits() }, "region"),
        ] {
            let error = limits.validate(&settings).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: expected ")) && !error.contains("--"), "{error}");
        }
        limits().validate(&settings).unwrap();
        assert_eq!(parse_timeout("90").unwrap(), parse_timeout("1m 30s").unwrap());
    }

    #[test]
    fn a_cost_above_the_maximum_or_unknown_is_rejected() {
        let limits = CostLimits { max_cost: Some(5.0), ..CostLimits::default() };
        limits.check_cost(Some(5.0)).unwrap();
        let error = limits.check_cost(Some(5.5)).unwrap_err().to_string();
        assert_eq!(error, "max_cost: the expected cost of $5.50 exceeds $5.00; nothing was started");
        assert!(matches!(limits.check_cost(None), Err(Error::NoPrice)));
        CostLimits::default().check_cost(None).unwrap();
    }
}
