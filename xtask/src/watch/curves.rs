// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rates over time as pictures.

use crate::watch::markup::{cut, escaped};
use crate::watch::rates::Drawing;

/// Sizes in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
/// Parts of an axis.
const PARTS: u32 = 4;
/// Characters of a name in the key.
const ROOM: usize = 40;

/// A drawing as a figure with its key.
pub fn figure(drawing: &Drawing, (from, to): (f64, f64)) -> String {
    let (most, to) = (round_up(drawing.most), to.max(from + 1.0));
    let x = |time: f64| LEFT + (time - from) / (to - from) * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| HEIGHT - BOTTOM - rate / most * (HEIGHT - TOP - BOTTOM);
    let title = escaped(&drawing.title);
    let mut figure = format!(
        "<figure>\n<figcaption>{title}</figcaption>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {HEIGHT:.0}\" role=\"img\" aria-label=\"{title}\">\n"
    );
    for part in 0..=PARTS {
        let part = f64::from(part) / f64::from(PARTS);
        let (rate, time) = (most * part, from + (to - from) * part);
        let (line, label) = (y(rate), y(rate) + 4.0);
        figure += &format!(
            "<path class=\"grid\" d=\"M{LEFT:.1} {line:.1}H{:.1}\"/><text class=\"y\" x=\"{:.1}\" y=\"{label:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            number(rate, most),
        );
        let anchor = if part == 1.0 { "end" } else { "middle" };
        figure += &format!(
            "<text class=\"x\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{} s</text>\n",
            if part == 1.0 { WIDTH - RIGHT } else { x(time) },
            HEIGHT - 8.0,
            number(time, to - from),
        );
    }
    for (colour, curve) in drawing.curves.iter().enumerate() {
        figure += &format!("<g class=\"curve c{colour}\"><title>{}</title>", escaped(&curve.name));
        for part in curve.parts() {
            let points: Vec<String> =
                part.iter().map(|(time, rate)| format!("{:.1},{:.1}", x(*time), y(*rate))).collect();
            figure += &format!("<polyline points=\"{}\"/>", points.join(" "));
            // A line of one point is not seen.
            if let [(time, rate)] = part[..] {
                figure += &format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>", x(time), y(rate));
            }
        }
        figure += "</g>\n";
    }
    figure += "</svg>\n<ul class=\"key\">";
    for (colour, curve) in drawing.curves.iter().enumerate() {
        figure += &format!("<li class=\"c{colour}\">{}</li>", escaped(&cut(&curve.name, ROOM)));
    }
    figure + "</ul>\n</figure>\n"
}

/// The next number whose quarters read well.
fn round_up(number: f64) -> f64 {
    let unit = 10_f64.powf(number.max(f64::MIN_POSITIVE).log10().floor());
    let digits = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    digits.into_iter().map(|digit| digit * unit).find(|round| *round >= number).unwrap_or(number)
}

/// A number on an axis of that length: with as many digits as tell its parts from each other.
fn number(number: f64, length: f64) -> String {
    let digits = (2.0 - (length / f64::from(PARTS)).log10()).ceil().clamp(0.0, 6.0) as usize;
    let number = format!("{number:.digits$}");
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.').to_owned() } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let rounded = [0.03, 1.0, 1.1, 42.0, 99.0, 4750.2].map(round_up);
        for (got, expected) in rounded.into_iter().zip([0.03, 1.0, 1.2, 50.0, 100.0, 5000.0]) {
            assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        }
        let numbers =
            [(0.0, 0.2), (0.05, 0.2), (1250.0, 5000.0), (2.5, 10.0), (54.93, 12.0), (1000.0, 3600.0)];
        let shown = numbers.map(|(one, length)| number(one, length));
        assert_eq!(shown, ["0", "0.05", "1250", "2.5", "54.93", "1000"]);
    }
}
