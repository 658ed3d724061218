//! What a person sees: numbers with units, tables, progress. Results go to standard output, everything else to standard error;
//! colours only where a terminal looks and nobody set NO_COLOR.

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

/// Writes a result to standard output. A reader that went away (`| head`) ends the program quietly, as other tools do.
pub fn print(text: impl AsRef<str>) -> Result<()> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("cannot write to standard output"),
    }
}

/// Help, which is a result, or what is wrong with the arguments; the exit code.
pub fn usage(error: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(e) if !error.use_stderr() && e.kind() != io::ErrorKind::BrokenPipe => {
            note(format!("error: cannot write to standard output: {e}"));
            ExitCode::FAILURE
        }
        _ => code,
    }
}

/// Whether an error is that nobody reads a pipe any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes a result as JSON to standard output.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string_pretty(value)? + "\n")
}

/// Writes a result as JSON to standard output, as it is made: for those that may be larger than memory.
pub fn stream_json(value: &impl Serialize) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let written = serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from);
    match written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("cannot write to standard output"),
    }
}

/// Writes a result as JSON to a file.
pub fn write_json(path: &str, value: &impl Serialize) -> Result<()> {
    if path == "-" {
        return print_json(value);
    }
    write(path, &(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a result to a file.
pub fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {path}"))
}

/// How wide lines are at most.
pub const WIDTH: usize = 80;

/// Where a report goes, beside what people read of it.
#[derive(clap::Args)]
pub struct Files {
    /// Write the report as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// Write the report as a web page to this file, which needs no other
    #[arg(long, value_name = "FILE")]
    pub html: Option<String>,
}

impl Files {
    /// Whether standard output is for the JSON alone.
    pub fn takes_stdout(&self) -> bool {
        self.json.as_deref() == Some("-")
    }

    /// Writes the report, and its page, where they were asked for.
    pub fn write(&self, report: &impl Serialize, page: impl FnOnce() -> Result<String>) -> Result<()> {
        if let Some(path) = &self.json {
            write_json(path, report)?;
        }
        if let Some(path) = &self.html {
            write(path, &page()?)?;
        }
        Ok(())
    }
}

/// A plain aligned table: columns whose title begins with `>` are numbers, aligned to the right (the `>` isn't shown).
pub fn table<'a>(columns: impl IntoIterator<Item = &'a str>, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let (titles, right): (Vec<_>, Vec<_>) =
        columns.into_iter().map(|c| c.strip_prefix('>').map_or((c, false), |c| (c, true))).unzip();
    let align = |i: usize| if right[i] { CellAlignment::Right } else { CellAlignment::Left };
    if titles.iter().any(|t| !t.is_empty()) {
        table.set_header(titles.iter().enumerate().map(|(i, t)| Cell::new(t).set_alignment(align(i))));
    }
    for row in rows {
        table.add_row(row.into_iter().enumerate().map(|(i, text)| Cell::new(text).set_alignment(align(i))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Wraps the text of a table's last column to what the others leave of a line of `width` columns, but of 24 at least.
pub fn wrap_last(columns: &[&str], rows: &mut [Vec<String>], width: usize) {
    let Some(last) = columns.len().checked_sub(1) else { return };
    let title = |i: usize| columns[i].trim_start_matches('>').width();
    let widest = |i: usize| rows.iter().map(|row| row[i].width()).max().unwrap_or(0).max(title(i));
    let room = width.saturating_sub((0..last).map(|i| widest(i) + 2).sum()).max(24);
    for text in rows.iter_mut().map(|row| &mut row[last]).filter(|text| text.width() > room) {
        *text = lines(text, room).join("\n");
    }
}

/// Names and values, one pair a line; values are wrapped.
pub fn pairs(rows: impl IntoIterator<Item = (impl AsRef<str>, String)>) -> String {
    let mut rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![format!("  {}", name.as_ref()), value]).collect();
    wrap_last(&["", ""], &mut rows, WIDTH);
    table(["", ""], rows)
}

/// The columns of the terminal that standard output is; `None` where it is none.
pub fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// A paragraph, in lines of at most 80 columns.
pub fn paragraph(text: &str) -> String {
    lines(text, WIDTH).join("\n") + "\n"
}

/// A line, broken where it is too long, words too; what follows is indented by `by`. What stands at its beginning is kept, spaces and all.
pub fn wrapped(line: &str, by: usize) -> String {
    let (mut text, mut width, mut fresh) = (String::new(), 0, true);
    for part in line.split_inclusive(' ') {
        let word = part.trim_end_matches(' ');
        if !fresh && width + word.width() > WIDTH {
            text.truncate(text.trim_end_matches(' ').len());
            text += &format!("\n{}", " ".repeat(by));
            width = by;
            fresh = true;
        }
        for c in part.chars() {
            let columns = c.encode_utf8(&mut [0; 4]).width();
            if width + columns > WIDTH && c != ' ' {
                text += &format!("\n{}", " ".repeat(by));
                width = by;
            }
            // Behind a break, and past the edge, space is not needed.
            if c == ' ' && (width >= WIDTH || (fresh && width == by && text.contains('\n'))) {
                continue;
            }
            text.push(c);
            width += columns;
            fresh &= c == ' ';
        }
    }
    text.truncate(text.trim_end_matches(' ').len());
    text + "\n"
}

/// The words of a text, in lines of at most `width` columns.
pub fn lines(text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.width() + 1 + word.width() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines.push(line);
    lines
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `512 B`, `16 KiB`, `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    let shift = [40, 30, 20, 10].into_iter().find(|s| n >= 1 << s);
    let Some(shift) = shift else { return format!("{n} B") };
    let unit = ["KiB", "MiB", "GiB", "TiB"][shift / 10 - 1];
    if n.is_multiple_of(1 << shift) {
        format!("{} {unit}", n >> shift)
    } else {
        format!("{:.1} {unit}", n as f64 / (1u64 << shift) as f64)
    }
}

/// A mean, which may be below a nanosecond: `0.4 ns`, `870 ns`, `1.36 us`.
pub fn time(mean: f64) -> String {
    if mean < 100.0 { format!("{} ns", three(mean)) } else { nanos(mean.round() as u64) }
}

/// `812 ns`, `1.36 us`, `12.3 ms`, `2.00 s`.
pub fn nanos(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} ns"),
        1_000..1_000_000 => three(n as f64 / 1e3) + " us",
        1_000_000..1_000_000_000 => three(n as f64 / 1e6) + " ms",
        _ => three(n as f64 / 1e9) + " s",
    }
}

/// `850`, `645 k`, `3.50 M`.
pub fn rate(n: f64) -> String {
    match n {
        n if n >= 1e6 => three(n / 1e6) + " M",
        n if n >= 1e3 => three(n / 1e3) + " k",
        n => format!("{n:.0}"),
    }
}

/// Three digits.
pub fn three(n: f64) -> String {
    match n {
        n if n >= 99.95 => format!("{n:.0}"),
        n if n >= 9.995 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// How far something is: a bar where a terminal looks at standard error, else a line now and then.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    total: u64,
    said: Instant,
}

impl Progress {
    /// The first line comes when it took this long, and one each time it took as long again.
    const LINES: Duration = Duration::from_secs(5);

    /// Of `total` bytes, where that is known.
    pub fn bytes(what: impl Into<String>, total: Option<u64>) -> Self {
        let Some(total) = total else { return Self::new(what.into(), 0, "{prefix}  {binary_bytes}  {msg}") };
        Self::new(what.into(), total, "{prefix}  {bar:24}  {binary_bytes} of {binary_total_bytes}  {msg}")
    }

    /// Of `total` milliseconds.
    pub fn time(what: impl Into<String>, total: Duration) -> Self {
        Self::new(what.into(), total.as_millis().max(1) as u64, "{prefix}  {bar:24}  {percent:>3} %  {msg}")
    }

    /// A step of which nobody can tell how far it is; how long it has taken is shown on a terminal.
    pub fn step(what: impl Into<String>) -> Self {
        let progress = Self::new(what.into(), 0, "{spinner} {prefix}  {elapsed}");
        if let Some(bar) = &progress.bar {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        progress
    }

    fn new(what: String, total: u64, template: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_prefix(what.clone()).with_style(style.progress_chars("=> "))
        });
        Self { bar, what, total, said: Instant::now() }
    }

    /// What is being done now.
    pub fn set_what(&mut self, what: impl Into<String>) {
        self.what = what.into();
        if let Some(bar) = &self.bar {
            bar.set_prefix(self.what.clone());
        }
    }

    /// It is at `position` of the total; `more` is said beside it.
    pub fn at(&mut self, position: u64, more: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(more());
        } else if self.said.elapsed() >= Self::LINES {
            self.said = Instant::now();
            let far = match self.total {
                0 => bytes(position),
                total => format!("{} %", (position * 100 / total).min(100)),
            };
            note(format!("{}: {far}  {}", self.what, more()).trim_end());
        }
    }

    /// The rest of the line, with everything said so far gone.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// An error and what it came from, a line each; what a line says already is not said again.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.contains(&cause) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
        last = cause;
    }
    text
}

/// Says something on standard error.
pub fn note(text: impl AsRef<str>) {
    // Nobody is left to be told that standard error is gone.
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        for (n, text) in [(0, "0 B"), (512, "512 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (1 << 40, "1 TiB")] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [
            (999, "999 ns"),
            (1_360, "1.36 us"),
            (99_960, "100 us"),
            (12_300_000, "12.3 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(nanos(n), text);
        }
        for (n, text) in [(850.0, "850"), (645_100.0, "645 k"), (3_501_000.0, "3.50 M")] {
            assert_eq!(rate(n), text);
        }
    }

    #[test]
    fn a_paragraph_is_not_wider_than_a_terminal() {
        let text = paragraph(&"four ".repeat(33));
        assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [79, 79, 4]);
        assert_eq!(paragraph("one  two"), "one two\n");
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "1,000".to_owned()]];
        assert_eq!(table(["name", ">n"], rows), "name      n\na         1\nbcd   1,000\n");
    }

    #[test]
    fn text_at_the_end_of_a_table_is_wrapped() {
        let text = pairs([("name", "four ".repeat(20)), ("other", "text".to_owned())]);
        assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [78, 38, 13]);
        assert!(text.lines().nth(1).unwrap().starts_with("         four"), "{text}");
    }

    #[test]
    fn lines_are_broken() {
        let text = wrapped(&format!("  {} {}  end", "four ".repeat(20).trim_end(), "x".repeat(200)), 4);
        assert!(text.lines().all(|line| line.width() <= WIDTH && line == line.trim_end()), "{text}");
        assert!(text.starts_with("  four four") && text.ends_with("  end\n"), "{text}");
        assert_eq!(text.matches('x').count(), 200);
        assert_eq!(wrapped("a  b", 2), "a  b\n");
        // As wide as they are shown.
        assert!(wrapped(&"漢字 ".repeat(40), 0).lines().all(|line| line.width() <= WIDTH));
    }
}
