//! Plots, as SVG text: lines with error bars over a few categories, and distributions as bars. Each kind of line has a colour, a marker and a
//! dash of its own, so that it is told without colours too.
//!
//! Colours are CSS custom properties ([`PALETTE`]), so that a page or the plot itself has a light and a dark face.

use crate::report::Quantiles;
use anyhow::{Result, anyhow};
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;
use std::ops::Range;

/// Which look a line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineStyle(pub usize);

/// A line.
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// How it looks.
    pub line_style: LineStyle,
    /// For each category that it has: which, the value, and its lowest and highest.
    pub points: Vec<(usize, f64, f64, f64)>,
}

/// What an axis of values is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// From 0, in equal steps.
    #[default]
    Linear,
    /// Nanoseconds, in decades: what is below one of them is shown as one. Its numbers have units.
    Nanos,
}

/// Lines over categories.
pub struct Lines {
    /// Above it.
    pub title: String,
    /// What the categories are, with their unit.
    pub x: &'static str,
    /// The categories.
    pub categories: Vec<String>,
    /// What the values are, with their unit.
    pub y: String,
    /// The largest value there is room for.
    pub top: f64,
    /// The axis of the values.
    pub scale: Scale,
    /// The lines.
    pub lines: Vec<Line>,
    /// A level to look at.
    pub level: Option<f64>,
}

/// Distributions of times.
pub struct Times<'a> {
    /// Above it.
    pub title: &'a str,
    /// What the times are of; the axis is logarithmic, and its numbers have units.
    pub x: &'a str,
    /// Name, look and nanoseconds of each.
    pub rows: Vec<(String, LineStyle, Quantiles)>,
}

const SIZE: (u32, u32) = (440, 320);
const FONT: &str = "sans-serif";
const TEXT_SIZE: i32 = 15;
/// A letter of that size takes at most about so many pixels.
const LETTER: i32 = 7;

/// Colours by what they are for: the one that is drawn with, its property, and the property's values on light and dark paper. The last five, by
/// [`LineStyle`], are Okabe and Ito's, which all eyes tell apart.
pub const PALETTE: [(RGBColor, &str, &str, &str); 8] = [
    (RGBColor(1, 2, 3), "--paper", "#ffffff", "#16181d"),
    (RGBColor(4, 5, 6), "--ink", "#1d2127", "#e4e7eb"),
    (RGBColor(7, 8, 9), "--rule", "#d5d9df", "#3a404a"),
    (RGBColor(0, 114, 178), "--look0", "#0072b2", "#56b4e9"),
    (RGBColor(86, 180, 233), "--look1", "#009e73", "#009e73"),
    (RGBColor(230, 159, 0), "--look2", "#e69f00", "#e69f00"),
    (RGBColor(213, 94, 0), "--look3", "#d55e00", "#d55e00"),
    (RGBColor(204, 121, 167), "--look4", "#cc79a7", "#cc79a7"),
];
const PAPER: RGBColor = PALETTE[0].0;
const INK: RGBColor = PALETTE[1].0;
const RULE: RGBColor = PALETTE[2].0;

impl LineStyle {
    const COUNT: usize = 5;

    fn color(self) -> RGBColor {
        PALETTE[3 + self.0 % Self::COUNT].0
    }

    /// Length of dashes and of gaps between them, in pixels.
    fn dash(self) -> Option<(u32, u32)> {
        [None, Some((9, 4)), Some((2, 3)), Some((5, 3)), Some((12, 6))][self.0 % Self::COUNT]
    }

    /// The shape of its markers, around their centre.
    fn shape(self) -> (Vec<(i32, i32)>, bool) {
        let circle = |r: f64| {
            let at = |i: i32| {
                let (sin, cos) = (f64::from(i) * std::f64::consts::TAU / 16.0).sin_cos();
                ((r * cos).round() as i32, (r * sin).round() as i32)
            };
            (0..=16).map(at).collect()
        };
        match self.0 % Self::COUNT {
            0 => (circle(4.0), true),
            1 => (circle(6.0), false),
            2 => (vec![(0, -6), (5, 4), (-5, 4), (0, -6)], true),
            3 => (vec![(-4, -4), (4, -4), (4, 4), (-4, 4), (-4, -4)], true),
            _ => (vec![(0, -7), (5, 0), (0, 7), (-5, 0), (0, -7)], false),
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a new plot of [`SIZE`] for each of `panels`, one beside the other.
fn svg(panels: u32, draw: impl FnOnce(&[Area]) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (SIZE.0 * panels, SIZE.1)).into_drawing_area();
        draw(&root.split_evenly((1, panels as usize)))?;
        root.present().map_err(failed)?;
    }
    for (color, property, ..) in PALETTE {
        let RGBColor(r, g, b) = color;
        text = text.replace(&format!("\"#{r:02X}{g:02X}{b:02X}\""), &format!("\"var({property})\""));
    }
    Ok(text)
}

/// A plot that stands alone, with its own light and dark face.
pub fn standalone(svg: &str) -> String {
    let Some(head) = svg.find('>') else { return svg.to_owned() };
    let (head, rest) = svg.split_at(head + 1);
    let paper = r#"<rect width="100%" height="100%" fill="var(--paper)"/>"#;
    format!("{head}\n<style>{}</style>\n{paper}{rest}", palette())
}

/// The colours, as a style sheet.
pub fn palette() -> String {
    let face = |dark: bool| -> String {
        let value = |light: &str, night: &str| if dark { night.to_owned() } else { light.to_owned() };
        PALETTE.iter().map(|(_, name, light, night)| format!("{name}:{};", value(light, night))).collect()
    };
    format!(":root{{{}}}@media(prefers-color-scheme:dark){{:root{{{}}}}}", face(false), face(true))
}

/// The largest value of some lines, error bars included.
pub fn top(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(|(_, _, _, high)| *high).fold(0.0, f64::max)
}

/// One plot of lines, or several side by side.
pub fn lines(panels: &[Lines]) -> Result<String> {
    svg(panels.len() as u32, |areas| panels.iter().zip(areas).try_for_each(|(panel, area)| panel.draw(area)))
}

impl Lines {
    fn draw(&self, area: &Area) -> Result<()> {
        let most = self.level.map_or(self.top, |level| level.max(self.top));
        let names: Vec<_> = self.lines.iter().map(|line| (line.name.as_str(), line.line_style)).collect();
        let area = headed(area, &self.title, &names)?;
        let count = self.categories.len();
        let place = |y: f64| match self.scale {
            Scale::Linear => y,
            Scale::Nanos => y.max(1.0).log10(),
        };
        let (range, ticks) = match self.scale {
            Scale::Linear => {
                let ticks = ticks(most);
                (0.0..ticks.last().copied().unwrap_or(1.0).max(most) * 1.04, ticks)
            }
            Scale::Nanos => {
                let values = self.lines.iter().flat_map(|line| &line.points).map(|(_, _, low, _)| place(*low));
                let (low, high) = (values.fold(place(most), f64::min).floor(), place(most).ceil());
                let high = high.max(low + 1.0);
                (low..high, (low as i32..=high as i32).map(f64::from).collect())
            }
        };
        let x = Axis { range: -0.5..count as f64 - 0.5, ticks: (0..count).map(|i| i as f64).collect() };
        let mut builder = ChartBuilder::on(&area);
        builder.x_label_area_size(44).y_label_area_size(62).margin_right(10);
        let mut chart = builder.build_cartesian_2d(x, Axis { range, ticks }).map_err(failed)?;
        let category = |x: &f64| self.categories.get(x.round() as usize).cloned().unwrap_or_default();
        let number = |y: &f64| match self.scale {
            Scale::Linear => format!("{}", (y * 1e6).round() / 1e6),
            Scale::Nanos => decade(y.round() as i32),
        };
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().x_label_formatter(&category).y_label_formatter(&number);
        style(&mut mesh, self.x, &self.y);
        mesh.draw().map_err(failed)?;
        if let Some(level) = self.level {
            let line =
                PathElement::new(vec![(-0.5, place(level)), (count as f64 - 0.5, place(level))], INK.stroke_width(1));
            chart.draw_series([line]).map_err(failed)?;
        }
        for (i, line) in self.lines.iter().enumerate() {
            // Side by side: lines that are equal shall both be seen.
            let shift = (i as f64 - (self.lines.len() as f64 - 1.0) / 2.0) * 0.07;
            let at = |category: usize, y: f64| (category as f64 + shift, place(y));
            let style = line.line_style.color().stroke_width(2);
            let path = line.points.iter().map(|(x, y, ..)| at(*x, *y));
            match line.line_style.dash() {
                Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(path, dash, gap, style)),
                None => chart.draw_series(LineSeries::new(path, style)),
            }
            .map_err(failed)?;
            for (x, y, low, high) in line.points.iter().copied() {
                chart.draw_series([PathElement::new(vec![at(x, low), at(x, high)], style)]).map_err(failed)?;
                for end in [low, high] {
                    let cap = EmptyElement::at(at(x, end)) + PathElement::new(vec![(-3, 0), (3, 0)], style);
                    chart.draw_series([cap]).map_err(failed)?;
                }
                let (shape, filled) = line.line_style.shape();
                let fill = if filled { line.line_style.color() } else { PAPER };
                let marker = EmptyElement::at(at(x, y))
                    + Polygon::new(shape.clone(), fill.filled())
                    + PathElement::new(shape, line.line_style.color().stroke_width(2));
                chart.draw_series([marker]).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Times on a logarithmic axis: a bar from the 10th to the 90th percentile with the median, a line from the least to the 99th.
pub fn times(plot: &Times) -> Result<String> {
    svg(1, |areas| {
        let area = headed(&areas[0], plot.title, &[])?;
        // Nothing is shown below a tenth of a nanosecond.
        let log = |nanos: f64| nanos.max(0.1).log10();
        let all = plot.rows.iter().flat_map(|(_, _, ns)| [log(ns.min), log(ns.p99)]);
        let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low.floor(), high.ceil().max(low.floor() + 1.0)) };
        let count = plot.rows.len();
        let widest = plot.rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0) as i32;
        let decades = (low as i32..=high as i32).map(f64::from).collect();
        // From top to bottom.
        let y = Axis { range: -0.6..count as f64 - 0.4, ticks: (0..count).map(|i| i as f64).collect() };
        let mut builder = ChartBuilder::on(&area);
        builder.x_label_area_size(44).y_label_area_size(widest * LETTER + 14).margin_right(24);
        let mut chart = builder.build_cartesian_2d(Axis { range: low..high, ticks: decades }, y).map_err(failed)?;
        let row = |y: f64| count - 1 - (y.round() as usize).min(count.saturating_sub(1));
        let name = |y: &f64| plot.rows.get(row(*y)).map(|(name, ..)| name.clone()).unwrap_or_default();
        let decade = |x: &f64| decade(x.round() as i32);
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().x_label_formatter(&decade).y_label_formatter(&name);
        style(&mut mesh, plot.x, "");
        mesh.draw().map_err(failed)?;
        for (i, (_, line_style, ns)) in plot.rows.iter().enumerate() {
            let y = (count - 1 - i) as f64;
            let color = line_style.color();
            let whisker = PathElement::new(vec![(log(ns.min), y), (log(ns.p99), y)], color.stroke_width(2));
            chart.draw_series([whisker]).map_err(failed)?;
            let bar = Rectangle::new([(log(ns.p10), y - 0.22), (log(ns.p90), y + 0.22)], color.filled());
            chart.draw_series([bar]).map_err(failed)?;
            let median = PathElement::new(vec![(log(ns.p50), y - 0.32), (log(ns.p50), y + 0.32)], INK.stroke_width(3));
            chart.draw_series([median]).map_err(failed)?;
        }
        Ok(())
    })
}

/// A title and a legend; what is left below them.
fn headed<'a>(area: &Area<'a>, title: &str, names: &[(&str, LineStyle)]) -> Result<Area<'a>> {
    let font = (FONT, TEXT_SIZE).into_font().color(&INK);
    let left = font.pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(
        title.to_owned(),
        (10, 14),
        (FONT, TEXT_SIZE + 2).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center)),
    ))
    .map_err(failed)?;
    let width = area.dim_in_pixel().0 as i32;
    let (mut x, mut y) = (12, 36);
    for (name, line_style) in names {
        let wide = 34 + name.chars().count() as i32 * LETTER + 12;
        if x > 12 && x + wide > width {
            (x, y) = (12, y + 19);
        }
        let style = line_style.color().stroke_width(2);
        let (dash, gap) = line_style.dash().map_or((26, 0), |(dash, gap)| (dash as i32, gap as i32));
        let mut at = 0;
        while at < 26 {
            let piece = vec![(x + at, y), (x + (at + dash).min(26), y)];
            area.draw(&PathElement::new(piece, style)).map_err(failed)?;
            at += dash + gap;
        }
        let (shape, filled) = line_style.shape();
        let shape: Vec<_> = shape.into_iter().map(|(dx, dy)| (x + 13 + dx, y + dy)).collect();
        let fill = if filled { line_style.color() } else { PAPER };
        area.draw(&Polygon::new(shape.clone(), fill.filled())).map_err(failed)?;
        area.draw(&PathElement::new(shape, style)).map_err(failed)?;
        area.draw(&Text::new((*name).to_owned(), (x + 32, y), left.clone())).map_err(failed)?;
        x += wide;
    }
    let top = if names.is_empty() { 30 } else { y + 16 };
    Ok(area.margin(top, 4, 2, 2))
}

/// A linear axis with chosen ticks.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        start + (f64::from(end - start) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The look that all plots share: lines, letters, and what the axes are.
fn style(mesh: &mut MeshStyle<Axis, Axis, SVGBackend>, x: &str, y: &str) {
    let font = (FONT, TEXT_SIZE).into_font().color(&INK);
    mesh.axis_style(INK).bold_line_style(RULE).label_style(font.clone()).axis_desc_style(font);
    mesh.set_all_tick_mark_size(4).x_desc(x).y_desc(y);
}

/// 0 and a few round numbers, the last of them at `most` or below.
fn ticks(most: f64) -> Vec<f64> {
    if !(most > 0.0 && most.is_finite()) {
        return vec![0.0, 1.0];
    }
    let ten = 10f64.powf(most.log10().floor());
    let step = [0.2, 0.25, 0.5, 1.0, 2.0].into_iter().map(|s| s * ten).find(|step| most / step <= 6.0).unwrap_or(ten);
    (0..=(most / step + 1e-9) as u32).map(|i| f64::from(i) * step).collect()
}

/// `10^exponent` nanoseconds.
fn decade(exponent: i32) -> String {
    let unit = ["ns", "us", "ms", "s"][(exponent.div_euclid(3)).clamp(0, 3) as usize];
    let rest = exponent - exponent.div_euclid(3).clamp(0, 3) * 3;
    format!("{} {unit}", 10f64.powi(rest))
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("cannot draw a plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (most, expected) in [
            (1.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0][..]),
            (20.2, &[0.0, 5.0, 10.0, 15.0, 20.0]),
            (105.0, &[0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (0.0, &[0.0, 1.0]),
            (f64::NAN, &[0.0, 1.0]),
            (f64::INFINITY, &[0.0, 1.0]),
        ] {
            let ticks = ticks(most);
            let close = ticks.len() == expected.len() && ticks.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9);
            assert!(close, "{most}: {ticks:?}");
        }
    }

    #[test]
    fn decades_have_units() {
        let names: Vec<_> = [-1, 0, 2, 3, 6, 9, 10].map(decade).to_vec();
        assert_eq!(names, ["0.1 ns", "1 ns", "100 ns", "1 us", "1 ms", "1 s", "10 s"]);
    }

    #[test]
    fn colours_are_properties_and_each_line_has_its_own_style() {
        let line = |i: usize| Line {
            name: format!("line {i}"),
            line_style: LineStyle(i),
            points: vec![(0, 1.0 + i as f64, 0.5, 7.0), (1, f64::NAN, 0.0, f64::INFINITY)],
        };
        let panel = Lines {
            title: "a < b".to_owned(),
            x: "x, m",
            categories: vec!["1".to_owned(), "8".to_owned()],
            y: "y, s".to_owned(),
            top: 7.0,
            scale: Scale::Linear,
            lines: (0..5).map(line).collect(),
            level: Some(95.0),
        };
        let svg = lines(&[panel]).unwrap();
        assert!(!svg.contains("\"#") && svg.contains("a &lt; b"), "{svg}");
        for part in ["x, m", "y, s", "var(--look0)", "var(--look4)", "var(--ink)"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        let line_styles: Vec<_> = (0..5).map(|i| (LineStyle(i).dash(), LineStyle(i).shape())).collect();
        assert!(
            (0..5)
                .all(|i| (0..i).all(|j| line_styles[i].0 != line_styles[j].0 && line_styles[i].1 != line_styles[j].1))
        );
        assert!(standalone(&svg).contains("prefers-color-scheme"));
        assert!(times(&Times { title: "none", x: "time", rows: Vec::new() }).is_ok());
    }
}
