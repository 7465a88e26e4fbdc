//! A line chart as SVG: all that the plots here need.

use std::fmt::Write;

/// How the values of an axis are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// From 0 on.
    Linear,
    /// By powers of ten.
    Log,
}

/// A chart: named lines over a common axis.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// An axis: what it is, how it is laid out, and where its ticks are; by themselves if there are none.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) name: String,
    pub(crate) scale: Scale,
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    pub(crate) fn new(name: &str, scale: Scale) -> Axis {
        Axis { name: name.into(), scale, ticks: Vec::new() }
    }

    /// Ticks, and the part of the axis that they span.
    fn laid_out(&self, values: impl Iterator<Item = f64> + Clone) -> (Vec<(f64, String)>, f64, f64) {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if let ([first, ..], [.., last]) = (&self.ticks[..], &self.ticks[..]) {
            let pad = ((last.0 - first.0) * 0.03).max(0.3);
            return (self.ticks.clone(), first.0 - pad, last.0 + pad);
        }
        if self.scale == Scale::Log {
            let (low, high) = (low.max(1e-9).log10().floor() as i32, high.max(1e-9).log10().ceil() as i32);
            let high = high.max(low + 1);
            let ticks = (low..=high).map(|e| (10f64.powi(e), short(10f64.powi(e))));
            return (ticks.collect(), 10f64.powi(low), 10f64.powi(high));
        }
        let step = step(high.max(1e-9));
        let n = (high.max(1e-9) / step).ceil() as u32;
        let ticks = (0..=n).map(|i| (f64::from(i) * step, short(f64::from(i) * step)));
        (ticks.collect(), 0.0, f64::from(n) * step)
    }
}

/// A step of 1, 2 or 5 of some power of ten, so that about six fill the axis.
fn step(high: f64) -> f64 {
    let power = 10f64.powf((high / 6.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|s| high / s <= 6.0).unwrap_or(10.0 * power)
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v => format!("{}", (v * 1e9).round() / 1e9),
    }
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 36.0;
const PLOT_WIDTH: f64 = 520.0;
const PLOT_HEIGHT: f64 = 280.0;
/// Told apart by people who do not tell all colours apart (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"];

/// The charts below each other, as one picture.
pub(crate) fn draw(charts: &[Chart]) -> String {
    let mut out = String::new();
    let height = HEIGHT * charts.len() as f64;
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">"#
    );
    let _ = writeln!(out, r#"<rect width="100%" height="100%" fill="white"/>"#);
    for (i, chart) in charts.iter().enumerate() {
        let _ = writeln!(out, r#"<g transform="translate(0 {})">"#, i as f64 * HEIGHT);
        chart.draw(&mut out);
        let _ = writeln!(out, "</g>");
    }
    out.push_str("</svg>\n");
    out
}

impl Chart {
    fn draw(&self, out: &mut String) {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let (x_ticks, x_low, x_high) = self.x.laid_out(points().map(|p| p.0));
        let (y_ticks, y_low, y_high) = self.y.laid_out(points().map(|p| p.1));
        let at = |value: f64, low: f64, high: f64, scale: Scale| match scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log => (value.max(low) / low).log10() / (high / low).log10(),
        };
        let x = |v: f64| LEFT + PLOT_WIDTH * at(v, x_low, x_high, self.x.scale);
        let y = |v: f64| TOP + PLOT_HEIGHT * (1.0 - at(v, y_low, y_high, self.y.scale));
        let (right, bottom) = (LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT);
        text(out, LEFT, TOP - 14.0, "start", &self.title);
        text(out, LEFT + PLOT_WIDTH / 2.0, bottom + 38.0, "middle", &self.x.name);
        let _ = writeln!(
            out,
            r#"<text transform="translate(16 {}) rotate(-90)" text-anchor="middle">{}</text>"#,
            TOP + PLOT_HEIGHT / 2.0,
            escaped(&self.y.name)
        );
        for (value, name) in &y_ticks {
            let at = y(*value);
            let _ = writeln!(out, r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/>"##);
            text(out, LEFT - 6.0, at + 4.0, "end", name);
        }
        for (value, name) in &x_ticks {
            let at = x(*value);
            let _ = writeln!(out, r##"<path d="M{at:.1} {TOP}V{bottom}" stroke="#eee"/>"##);
            text(out, at, bottom + 18.0, "middle", name);
        }
        let _ = writeln!(out, r#"<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="black"/>"#);
        for (i, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let dash = if i < COLOURS.len() { "" } else { r#" stroke-dasharray="5 3""# };
            let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            let _ = writeln!(
                out,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#,
                path.join(" ")
            );
            for p in points {
                let _ =
                    writeln!(out, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(p.0), y(p.1));
            }
            let row = TOP + 10.0 + 18.0 * i as f64;
            let _ = writeln!(
                out,
                r#"<path d="M{} {row}h18" stroke="{colour}" stroke-width="3"{dash}/>"#,
                right + 14.0
            );
            text(out, right + 38.0, row + 4.0, "start", name);
        }
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_span_the_values() {
        let values = [3.0, 28.6];
        let (ticks, low, high) = Axis::new("", Scale::Linear).laid_out(values.into_iter());
        let names: Vec<_> = ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!((names, low, high), (vec!["0", "5", "10", "15", "20", "25", "30"], 0.0, 30.0));
        let (ticks, low, high) = Axis::new("", Scale::Log).laid_out([800.0, 2.1e6].into_iter());
        let names: Vec<_> = ticks.iter().map(|t| t.1.as_str()).collect();
        assert_eq!((names, low, high), (vec!["100", "1000", "10k", "100k", "1M", "10M"], 1e2, 1e7));
        let (ticks, ..) = Axis::new("", Scale::Linear).laid_out([0.0].into_iter());
        assert!(ticks.len() >= 2, "an axis of nothing but zeroes");
    }

    #[test]
    fn points_lie_where_they_belong() {
        let chart = Chart {
            title: "a < b & c".into(),
            x: Axis::new("x", Scale::Linear),
            y: Axis::new("y", Scale::Log),
            lines: vec![("one".into(), vec![(0.0, 1.0), (10.0, 100.0)])],
        };
        let svg = draw(&[chart]);
        let (right, bottom) = (LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT);
        let line = format!(r#"<polyline points="{LEFT:.1},{bottom:.1} {right:.1},{TOP:.1}""#);
        assert!(svg.contains(&line), "{svg}");
        assert!(svg.contains("a &lt; b &amp; c"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }
}
