//! Text as people paste it, made into lines as `lspci` wrote them: encodings, colours, what mail, Markdown, HTML, logs and `grep` put around.
//!
//! Nothing here knows what a line means, but whether it looks like one of `lspci`'s: a prefix that could be anything is taken away only where
//! such a line is behind it.

use super::line;
use encoding_rs_io::{DecodeReaderBytes, DecodeReaderBytesBuilder};
use std::io::{self, BufRead, BufReader, Read};

/// More than `lspci` ever wrote in a line, with a prefix. What is longer is cut off.
const LONGEST: usize = 16 << 10;

/// One line.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Without indentation, prefixes and colours; one space between words.
    pub(super) text: String,
    /// How wide it was, in columns.
    pub(super) width: usize,
    /// Its end may be missing.
    pub(super) cut: bool,
    /// From 1 on.
    pub(super) number: u64,
}

/// Bytes as UTF-8, with the first few that were looked at before them.
type Decoded<R> = DecodeReaderBytes<io::Chain<io::Cursor<Vec<u8>>, R>, Vec<u8>>;

/// The lines of some bytes, one after the other, in bounded memory.
pub(super) struct Lines<R: Read> {
    input: BufReader<Decoded<R>>,
    /// Of the decoded text, in bytes.
    offset: u64,
    number: u64,
    /// A carriage return ended the last line: a line feed belongs to it.
    returned: bool,
    raw: Vec<u8>,
}

/// Why there are no more lines.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// It isn't text: there is a zero byte, here.
    Zero(u64),
}

impl<R: Read> Lines<R> {
    pub(super) fn of(mut bytes: R) -> io::Result<Self> {
        let mut first = Vec::new();
        bytes.by_ref().take(4).read_to_end(&mut first)?;
        // Without a byte order mark: letters are letters, and every second byte is zero.
        let encoding = match first[..] {
            [a, 0, b, 0] if a != 0 && b != 0 => Some(encoding_rs::UTF_16LE),
            [0, a, 0, b] if a != 0 && b != 0 => Some(encoding_rs::UTF_16BE),
            _ => None,
        };
        let decoded = DecodeReaderBytesBuilder::new()
            .encoding(encoding)
            .utf8_passthru(true)
            .strip_bom(true)
            .build(io::Cursor::new(first).chain(bytes));
        Ok(Self { input: BufReader::new(decoded), offset: 0, number: 0, returned: false, raw: Vec::new() })
    }

    /// The next line; `false` at the end.
    pub(super) fn next(&mut self, line: &mut Line) -> Result<bool, ReadError> {
        line.text.clear();
        (line.cut, line.width) = (false, 0);
        let (mut first, mut glue) = (true, true);
        loop {
            self.raw.clear();
            let Some(ended) = self.raw_line()? else { return Ok(!first) };
            if first {
                self.number += 1;
                line.number = self.number;
            }
            first = false;
            line.cut = !ended;
            clean(&self.raw, line, glue);
            // A soft line break of quoted-printable text (RFC 2045, 6.7).
            let soft = (70..=76).contains(&line.width) && line.text.ends_with('=') && line.text.len() < LONGEST;
            if !soft {
                break;
            }
            line.text.pop();
            glue = !self.raw.ends_with(b" =");
        }
        if line.text.contains("=3D") {
            line.text = line.text.replace("=3D", "=").replace("=20", " ");
        }
        Ok(true)
    }

    /// Bytes up to the end of a line, which is `\n`, `\r\n` or `\r`. `None`: there is nothing more; `false`: the end is missing.
    fn raw_line(&mut self) -> Result<Option<bool>, ReadError> {
        let mut some = false;
        loop {
            let bytes = match self.input.fill_buf() {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ReadError::Io(e)),
            };
            if bytes.is_empty() {
                return Ok(some.then_some(false));
            }
            if std::mem::take(&mut self.returned) && bytes[0] == b'\n' {
                self.input.consume(1);
                self.offset += 1;
                continue;
            }
            some = true;
            let end = memchr::memchr2(b'\n', b'\r', bytes);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if let Some(at) = memchr::memchr(0, part) {
                return Err(ReadError::Zero(self.offset + at as u64));
            }
            let room = LONGEST - self.raw.len();
            self.raw.extend_from_slice(&part[..part.len().min(room)]);
            let whole = self.raw.len() < LONGEST;
            self.returned = end.is_some_and(|end| bytes[end] == b'\r');
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }
}

/// Appends to `line` what `raw` has of `lspci`'s; `glue`: without a space before it.
fn clean(raw: &[u8], line: &mut Line, mut glue: bool) {
    let (mut odd, mut last) = (false, 0);
    for &b in raw {
        odd |= matches!(b, 0x1b | b'^' | b'&' | b'\\' | b'<') || b >= 0x80 || (last == b'[' && b == b'K');
        last = b;
    }
    // Most lines are as `lspci` wrote them: behind tabs, with one space between words, and nothing else.
    let indent = raw.iter().take_while(|b| **b == b'\t').count();
    let inner = &raw[indent..];
    let ends = inner.first().is_some_and(u8::is_ascii_alphanumeric) && !b" |`$\",".contains(&last);
    let spaced = || inner.iter().any(|b| *b < b' ') || inner.windows(2).any(|pair| pair == b"  ");
    if indent > 0 && !odd && ends && !spaced() {
        line.width = 8 * indent + inner.len();
        if !glue {
            line.text.push(' ');
        }
        line.text.push_str(&String::from_utf8_lossy(inner));
        return;
    }
    let text = String::from_utf8_lossy(raw);
    let text = if odd { undecorated(&text).into() } else { text };
    line.width = text.chars().map(|c| if c == '\t' { 8 } else { 1 }).sum();
    // A line that begins with a tab has nothing else before it.
    let bare = if indent > 0 && !odd { unquoted(&text) } else { bare(&text) };
    for word in bare.split_whitespace() {
        if !std::mem::take(&mut glue) {
            line.text.push(' ');
        }
        line.text.extend(word.chars().filter(|c| !c.is_control()));
    }
}

/// Without colours, and with the characters that others stand for.
fn undecorated(text: &str) -> String {
    let mut text = text.to_owned();
    for (code, character) in [
        // An escape character, as some show it.
        ("\\u001b", "\x1b"),
        ("\\x1b", "\x1b"),
        ("\\033", "\x1b"),
        ("^[", "\x1b"),
        ("\u{241b}", "\x1b"),
        // `cat -A`.
        ("^I", "\t"),
        ("^M", ""),
        ("M-BM- ", " "),
        // HTML.
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&nbsp;", " "),
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("<br>", ""),
        ("<br/>", ""),
        ("<br />", ""),
        // Markdown.
        ("\\[", "["),
        ("\\]", "]"),
        ("\\<", "<"),
        ("\\>", ">"),
        ("\\_", "_"),
        ("\\-", "-"),
        ("\\+", "+"),
        ("\\#", "#"),
        ("\\t", "\t"),
        // No width, or another space's.
        ("\u{feff}", ""),
        ("\u{200b}", ""),
        ("\u{a0}", " "),
    ] {
        if text.contains(code) {
            text = text.replace(code, character);
        }
    }
    if text.contains('\x1b') {
        text = anstream::adapter::strip_str(&text).to_string();
    }
    // `grep --color`'s, whose escape characters were lost on the way.
    while let Some(end) = text.find("m[K") {
        let start =
            text[..end].rfind('[').filter(|at| text[at + 1..end].bytes().all(|b| matches!(b, b'0'..=b'9' | b';')));
        let Some(start) = start else { break };
        text.replace_range(start..end + 3, "");
    }
    text
}

/// Without what stands before it.
fn bare(text: &str) -> &str {
    let text = unquoted(text);
    if line::is_known(text) || text.is_empty() {
        return text;
    }
    // `file.txt:` and `12-` of grep, and the numbers of `cat -n`.
    let mut rest = text;
    for _ in 0..2 {
        let Some(at) = rest.find([':', '-', ' ', '\t']).filter(|at| *at < 64) else { break };
        let number = rest[..at].bytes().all(|b| b.is_ascii_digit());
        if rest[at..].starts_with([' ', '\t']) && !number {
            break;
        }
        rest = unquoted(&rest[at + 1..]);
        if line::is_known(rest) {
            return rest;
        }
    }
    // `app-1  | ` of docker compose.
    if let Some((name, rest)) = text.split_once('|')
        && name.split_whitespace().count() == 1
        && !name.contains(':')
    {
        return unquoted(rest);
    }
    // `[   12.345678] `, `Nov 28 23:00:01 host lspci[123]: `, `2026-11-28T23:00:01+00:00 host lspci: `.
    if let Some(rest) = after_time(text) {
        let rest = unquoted(rest);
        // The host, the program, the stream: a few words.
        let mut known = rest;
        for _ in 0..4 {
            if line::is_known(known) {
                return known;
            }
            known = known.split_once([' ', '\t']).map_or("", |(_, rest)| unquoted(rest));
        }
        return after_tag(rest).map_or(rest, unquoted);
    }
    text
}

/// Without space and what marks quotations, tables, code and strings, and the ends of lines of `cat -A`.
fn unquoted(text: &str) -> &str {
    const TAGS: [&str; 7] = ["<pre>", "<code>", "[code]", "{code}", "{noformat}", "[PRE]", "[CODE]"];
    let before = |c: char| {
        c.is_whitespace() || matches!(c, '>' | '|' | '#' | '`' | '*' | '│' | '┃' | '»' | ';' | '"' | '\u{feff}')
    };
    let after = |c: char| c.is_whitespace() || matches!(c, '|' | '`' | '│' | '$');
    let mut text = text.trim_start_matches(before).trim_end_matches(after);
    while let Some(rest) = TAGS.iter().find_map(|tag| text.strip_prefix(tag)) {
        text = rest.trim_start_matches(before);
    }
    text = text.strip_suffix("\",").unwrap_or(text);
    // Of a diff, and between the matches of grep.
    match text.strip_prefix(['+', '-']) {
        Some(rest) if rest.is_empty() || rest == "-" || line::is_known(rest.trim_start()) => {
            rest.trim_start_matches(['-', ' ', '\t'])
        }
        _ => text,
    }
}

/// What stands behind a time.
fn after_time(text: &str) -> Option<&str> {
    let clock = |word: &str| {
        word.len() >= 8
            && word.as_bytes()[2] == b':'
            && word.as_bytes()[5] == b':'
            && word.starts_with(|c: char| c.is_ascii_digit())
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (time, rest) = rest.split_once(']')?;
        let time = time.trim();
        let is_time = time.starts_with(|c: char| c.is_ascii_digit())
            && (time.contains('.') || time.matches(':').count() == 2)
            && time.bytes().all(|b| b.is_ascii_digit() || b".:-+TZ, ".contains(&b));
        return is_time.then_some(rest);
    }
    let (first, rest) = text.split_once(' ')?;
    let date = first.len() >= 10 && first.as_bytes()[4] == b'-' && first.as_bytes()[7] == b'-' && first.is_ascii();
    if date && first.get(11..).is_some_and(clock) {
        return Some(rest);
    }
    if first.is_ascii() && clock(first) {
        return Some(rest);
    }
    let (second, rest) = rest.trim_start().split_once(' ')?;
    if date && second.is_ascii() && clock(second) {
        return Some(rest);
    }
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"].contains(&first);
    let day = month && second.len() <= 2 && second.bytes().all(|b| b.is_ascii_digit());
    let (third, rest) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
    (day && third.is_ascii() && clock(third)).then_some(rest)
}

/// What stands behind `host lspci[123]: ` or `lspci: `.
fn after_tag(text: &str) -> Option<&str> {
    let (tag, rest) = text.split_once(':')?;
    let words = tag.split_whitespace().count();
    let spaced = rest.is_empty() || rest.starts_with([' ', '\t']);
    // One word may be the key of a line of `lspci`'s, but for a number in brackets.
    (spaced && (words == 2 || words == 1 && tag.ends_with(']'))).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its lines, joined.
    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::of(bytes).unwrap();
        let (mut line, mut all) = (Line::default(), Vec::new());
        while lines.next(&mut line).unwrap() {
            all.push(line.text.clone());
        }
        all
    }

    #[test]
    fn what_stands_around_a_line() {
        let region = "Region 0: Memory at f7000000 (64-bit, non-prefetchable) [size=16K]";
        let msix = "Capabilities: [b0] MSI-X: Enable+ Count=33 Masked-";
        let slot = "01:00.0 Non-Volatile memory controller: Example";
        for known in [region, msix, slot] {
            for before in [
                "",
                "\t",
                "        ",
                "> ",
                ">> > ",
                "| ",
                "# ",
                "#\t",
                "│ ",
                "\u{feff}",
                "+\t",
                "-",
                "- ",
                "    12\t",
                "12:",
                "12-\t",
                "dump.txt:",
                "dump.txt-\t",
                "dump.txt:12:",
                "[   12.345678] ",
                "[2026-11-28 23:00:01] ",
                "Nov 28 23:00:01 host lspci[123]: ",
                "Nov  8 23:00:01 host lspci: \t",
                "2026-11-28T23:00:01.123456+00:00 host lspci[1]: ",
                "2026-11-28 23:00:01,123 ",
                "23:00:01 ",
                "2026-11-28T23:00:01Z ",
                "> Nov 28 23:00:01 host x[1]: ",
                "2026-11-28T23:00:01.123456789Z stdout F \t",
                "<pre>",
                "[code]\t",
                "\"",
                "\"\\t",
                "app-1  | ",
                "web_1 |\t",
            ] {
                for after in ["", " ", "\r", " |", "\t"] {
                    assert_eq!(lines(format!("{before}{known}{after}\n").as_bytes()), [known], "{before:?} {after:?}");
                }
            }
            let spaced = known.replace(' ', "\t");
            assert_eq!(lines(spaced.as_bytes()), [known]);
            assert_eq!(lines(known.replace(' ', "\u{a0}").as_bytes()), [known]);
        }
        for (raw, text) in [
            ("\t\tLnkCap:\tPort #0, Speed 8GT/s", "LnkCap: Port #0, Speed 8GT/s"),
            ("Nov 28 23:00:01 host lspci[1]: \t\tLnkCap:\tPort #0", "LnkCap: Port #0"),
            ("Nov 28 23:00:01 host lspci[1]: ", ""),
            ("Nov 28 23:00:01 host lspci[1]:", ""),
            ("app-1  | \t\tLnkCap:\tPort #0", "LnkCap: Port #0"),
            ("--", ""),
            ("```", ""),
            (">", ""),
            (
                "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:01:00.0",
                "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:01:00.0",
            ),
            ("I have a 01:00.0 Ethernet controller: Intel", "I have a 01:00.0 Ethernet controller: Intel"),
            ("\tKernel modules: nvme", "Kernel modules: nvme"),
        ] {
            assert_eq!(lines(raw.as_bytes()), [text], "{raw:?}");
        }
    }

    #[test]
    fn colours_and_what_is_left_of_them() {
        let plain = "Capabilities: [b0] MSI-X: Enable+ Count=33 Masked-";
        for (on, off) in [
            ("\x1b[01;31m\x1b[K", "\x1b[m\x1b[K"),
            ("\x1b[1m", "\x1b[0m"),
            ("^[[01;31m^[[K", "^[[m^[[K"),
            ("[01;31m[K", "[m[K"),
            ("\\033[1m", "\\033[0m"),
            ("\\u001b[1m", "\\u001b[0m"),
            ("\x1b]8;;http://x\x07", "\x1b]8;;\x07"),
        ] {
            let text = plain.replace("MSI-X", &format!("{on}MSI-X{off}"));
            assert_eq!(lines(text.as_bytes()), [plain], "{text:?}");
        }
        // A name, and no colour.
        assert_eq!(lines(b"Subsystem: Intel [mini] [Kaby Lake]"), ["Subsystem: Intel [mini] [Kaby Lake]"]);
    }

    #[test]
    fn encodings_and_ends_of_lines() {
        let text = "01:00.0 X: caf\u{e9}\nStatus: Cap+\n\nend";
        let expected = ["01:00.0 X: caf\u{e9}", "Status: Cap+", "", "end"];
        let wide = |order: fn(u16) -> [u8; 2], mark: bool, text: &str| -> Vec<u8> {
            let mark = mark.then_some(0xfeff);
            mark.into_iter().chain(text.encode_utf16()).flat_map(order).collect()
        };
        for ends in ["\n", "\r\n", "\r"] {
            let text = text.replace('\n', ends);
            for bytes in [
                text.clone().into_bytes(),
                format!("\u{feff}{text}").into_bytes(),
                wide(u16::to_le_bytes, true, &text),
                wide(u16::to_be_bytes, true, &text),
                wide(u16::to_le_bytes, false, &text),
                wide(u16::to_be_bytes, false, &text),
            ] {
                assert_eq!(lines(&bytes), expected, "{bytes:?}");
            }
        }
        // Not UTF-8: what can be read is.
        assert_eq!(lines(b"01:00.0 X: caf\xe9\n"), ["01:00.0 X: caf\u{fffd}"]);
        let mut zero = Lines::of(&b"\x7fELF\x02\x01\x01\0\0"[..]).unwrap();
        assert!(matches!(zero.next(&mut Line::default()), Err(ReadError::Zero(7))));
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let text = format!("{}\nnext\n", "x".repeat(5 << 20));
        let (mut lines, mut line) = (Lines::of(text.as_bytes()).unwrap(), Line::default());
        assert!(lines.next(&mut line).unwrap() && line.cut && line.text.len() == LONGEST);
        assert!(lines.next(&mut line).unwrap() && !line.cut && line.text == "next");
    }
}
