//! A reader of OpenMetrics text for tests, as strict as OpenMetrics 1.0.0 is with gauges, counters and infos without timestamps and exemplars.
//! It knows nothing else, and refuses it.

use std::collections::BTreeMap;

/// Labels, in the order of their names.
pub type Labels = BTreeMap<String, String>;

/// A metric family.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub unit: String,
    pub help: Option<String>,
    pub samples: BTreeMap<Labels, f64>,
}

/// Families by their names; or which line is wrong, and why.
pub fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
    if !(body.is_empty() || body.ends_with('\n')) {
        return Err("# EOF is not a line of its own".to_owned());
    }
    let mut families = BTreeMap::new();
    let mut open: Option<(String, Family)> = None;
    for line in body.split_terminator('\n') {
        let bad = |why: &str| format!("{why}: {line:?}");
        match line.strip_prefix("# ") {
            Some(about) => {
                let mut parts = about.splitn(3, ' ');
                let (Some(what), Some(name), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
                    return Err(bad("metadata is TYPE, UNIT or HELP, a name, and more"));
                };
                if open.as_ref().is_none_or(|(current, _)| current != name) {
                    if !is_name(name, true) || families.contains_key(name) {
                        return Err(bad("no name, or that of a family that was closed"));
                    }
                    families.extend(open.replace((name.to_owned(), Family::default())));
                }
                let Some((_, family)) = &mut open else { return Err(bad("no family")) };
                if !family.samples.is_empty() {
                    return Err(bad("metadata behind samples"));
                }
                match what {
                    "TYPE" if family.kind.is_empty() && ["gauge", "counter", "info"].contains(&rest) => {
                        family.kind = rest.to_owned();
                    }
                    "UNIT" if family.unit.is_empty() && name.ends_with(&format!("_{rest}")) => {
                        family.unit = rest.to_owned();
                    }
                    "HELP" if family.help.is_none() => {
                        family.help = Some(unescaped(rest).ok_or_else(|| bad("an escape that there isn't"))?);
                    }
                    _ => return Err(bad("metadata once more, or of no kind that is known")),
                }
            }
            None => {
                let (name, labels, value) = sample(line).ok_or_else(|| bad("no sample"))?;
                let Some((family_name, family)) = &mut open else { return Err(bad("a sample of no family")) };
                let suffix = match family.kind.as_str() {
                    "counter" => "_total",
                    "info" => "_info",
                    "gauge" => "",
                    _ => return Err(bad("a sample of no type")),
                };
                if name.strip_suffix(suffix) != Some(family_name) {
                    return Err(bad("a sample of another family, or with another suffix"));
                }
                let right = match family.kind.as_str() {
                    "counter" => value >= 0.0,
                    "info" => value == 1.0 && family.unit.is_empty(),
                    _ => true,
                };
                if !right || family.samples.insert(labels, value).is_some() {
                    return Err(bad("no value for its type, or labels for the second time"));
                }
            }
        }
    }
    families.extend(open);
    Ok(families)
}

fn is_name(text: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || colons && c == ':';
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// `name{label="value",label="value"} number`, or without braces.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Labels::new();
    if let Some(more) = rest.strip_prefix('{') {
        rest = more;
        while !rest.starts_with('}') {
            let (label, more) = rest.split_once("=\"")?;
            let mut escaped = false;
            let end = more.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            let new = is_name(label, false) && labels.insert(label.to_owned(), unescaped(&more[..end])?).is_none();
            rest = &more[end + 1..];
            // No comma behind the last.
            let comma = rest.strip_prefix(',').filter(|more| !more.starts_with('}'));
            if !new || comma.is_none() && !rest.starts_with('}') {
                return None;
            }
            rest = comma.unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let number = rest.strip_prefix(' ')?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let value = number.parse().ok().filter(|_| plain)?;
    is_name(name, true).then_some((name, labels, value))
}

/// `\\`, `\"` and `\n`: there are no other escapes.
fn unescaped(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            },
            '"' => return None,
            c => c,
        });
    }
    Some(out)
}

#[test]
fn what_openmetrics_does_not_allow_is_refused() {
    let good = "# TYPE a_bytes counter\n# UNIT a_bytes bytes\n# HELP a_bytes \\\"A\\\".\na_bytes_total{x=\"\\\\\\n\",y=\"}\"} 1\n\
                a_bytes_total 2e3\n# TYPE b gauge\nb -0.5\n# TYPE c info\nc_info{d=\"\"} 1\n# EOF\n";
    let read_well = read(good).unwrap();
    assert_eq!(read_well.len(), 3);
    let counter = &read_well["a_bytes"];
    let labels: Vec<Vec<_>> =
        counter.samples.keys().map(|l| l.iter().map(|(k, v)| format!("{k}={v}")).collect()).collect();
    assert_eq!(labels, [vec![], vec!["x=\\\n".to_owned(), "y=}".to_owned()]]);
    assert_eq!((counter.unit.as_str(), counter.help.as_deref()), ("bytes", Some("\"A\".")));
    for (right, wrong) in [
        ("# EOF\n", "# EOF"),
        ("# EOF\n", ""),
        ("-0.5\n", "-0.5\n\n"),
        ("-0.5\n", "-0.5\r\n"),
        ("-0.5", "0x5"),
        ("-0.5", ""),
        (" counter", " clock"),
        (" counter", "  counter"),
        ("a_bytes bytes", "a_bytes packets"),
        ("\\\"A", "\\A"),
        ("\\\"A", "\"A"),
        ("_total{", "{"),
        ("_total{", "_created{"),
        ("x=", "1x="),
        ("x=", "x:="),
        ("x=", "y="),
        ("\\n\",", "\\t\","),
        ("\\n\",", "\\n\";"),
        ("\"}\"}", "\"}\",}"),
        ("y=\"}\"}", "y=\"}}"),
        ("} 1", "} -1"),
        ("} 1", "}  1"),
        ("a_bytes_total 2e3", "a_bytes_total{y=\"}\",x=\"\\\\\\n\"} 2e3"),
        ("# TYPE b gauge\n", ""),
        ("# TYPE b gauge", "# TYPE b gauge\n# TYPE b gauge"),
        ("# TYPE c info", "# TYPE a_bytes counter"),
        ("b -0.5", "b -0.5\n# HELP b B."),
        ("c_info{d=\"\"} 1", "c_info{d=\"\"} 2"),
    ] {
        assert!(good.contains(right));
        let bad = good.replacen(right, wrong, 1);
        assert!(read(&bad).is_err(), "{right:?} as {wrong:?}");
    }
}
