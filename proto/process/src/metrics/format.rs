//! OpenMetrics text as Prometheus' text format (version 0.0.4): a counter's metadata has the name of its sample, an info
//! is a gauge, and there is no unit and no end.

pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an `Accept` header takes OpenMetrics.
pub(super) fn asks_for_openmetrics(accept: &str) -> bool {
    accept.split(',').any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let openmetrics = parts.next() == Some("application/openmetrics-text");
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").map(str::parse);
            weight == Some(Ok(0.0))
        };
        openmetrics && !parts.any(refused)
    })
}

/// The same metrics in the text format.
pub(super) fn text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // A family's HELP comes before its TYPE, which decides on the name.
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), words) => help = words,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "stateset" => ("", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                let help = help.take().unwrap_or_default();
                text += &format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
        registry::{Registry, Unit},
    };

    use super::*;

    #[test]
    fn the_text_format_names_what_its_samples_are() {
        let mut all = Registry::with_prefix("x");
        all.register("a", "Counts", ConstCounter::new(3_u64));
        all.register("b", "Stands", ConstGauge::new(4_i64));
        all.register_with_unit("c", "Took", Unit::Seconds, Histogram::new([1.0]));
        let open = crate::metrics::encode(&all, "p", "1");
        assert!(open.ends_with("# EOF\n"), "{open}");
        assert!(open.contains("# TYPE x_a counter\n"), "{open}");
        assert!(open.contains("# UNIT x_c_seconds seconds\n"), "{open}");
        let text = text(&open);
        assert_eq!(
            text,
            "# HELP x_a_total Counts.\n# TYPE x_a_total counter\nx_a_total 3\n\
             # HELP x_b Stands.\n# TYPE x_b gauge\nx_b 4\n\
             # HELP x_c_seconds Took.\n# TYPE x_c_seconds histogram\n\
             x_c_seconds_sum 0.0\nx_c_seconds_count 0\n\
             x_c_seconds_bucket{le=\"1.0\"} 0\nx_c_seconds_bucket{le=\"+Inf\"} 0\n\
             # HELP sallyport_build_info The program and its version.\n# TYPE sallyport_build_info gauge\n\
             sallyport_build_info{program=\"p\",version=\"1\"} 1\n"
        );
    }

    #[test]
    fn openmetrics_is_for_who_asks() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        for (accept, open) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("*/*", false),
            ("text/plain, application/openmetrics-text; q=0", false),
        ] {
            assert_eq!(asks_for_openmetrics(accept), open, "{accept}");
        }
    }
}
