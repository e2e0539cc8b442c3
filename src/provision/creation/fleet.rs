//! Which VMs are to be made, as they are written: name ranges, sizes, and CSV with a header. Pure.

use crate::machine::MacAddr;

/// VMs that may be made at once.
pub const FLEET_MAX: usize = 1000;

/// The tag of VMs that nobody gave another.
pub const DEFAULT_TAG: &str = "bootflip";

/// What is asked for one VM; names are not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Where it is written, such as `fleet.csv:3`.
    pub place: String,
    /// `name_label`.
    pub name: String,
    /// The template's name or uuid.
    pub template: String,
    /// The network's name or uuid.
    pub network: String,
    /// The storage repository's name or uuid; absent: the template's, or the pool's default.
    pub sr: Option<String>,
    /// Bytes; absent: the template's.
    pub memory: Option<u64>,
    /// Absent: the template's.
    pub vcpus: Option<u32>,
    /// Bytes of the boot disk; absent: the template's.
    pub disk: Option<u64>,
    /// Absent: derived from prefix, pool and name.
    pub mac: Option<MacAddr>,
    /// A tag of the VM.
    pub tag: String,
}

/// What holds where a row says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// See [`Wish`]; so are the others.
    pub template: Option<String>,
    /// The network.
    pub network: Option<String>,
    /// The storage repository.
    pub sr: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
    /// VCPUs.
    pub vcpus: Option<u32>,
    /// Bytes.
    pub disk: Option<u64>,
    /// The tag.
    pub tag: Option<String>,
}

/// The columns that a list may have.
const COLUMNS: [&str; 9] = ["name", "template", "network", "sr", "memory", "vcpus", "disk", "mac", "tag"];

/// A size: a number of bytes, or with one of K, M, G, T (powers of 1024), such as `2GiB`, `512M`.
///
/// # Errors
/// What is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size; write it as 2GiB or 512MiB");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(bad)?;
    let shift = match unit.trim_start() {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok()).ok_or_else(bad)
}

/// The first half of a MAC address, locally administered and unicast, such as `02:16:3e`.
///
/// # Errors
/// What is wrong with it.
pub fn mac_prefix(text: &str) -> Result<[u8; 3], String> {
    let bad = || format!("`{text}` is not the first half of a MAC address; write it as 02:16:3e");
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    let prefix: [u8; 3] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(bad)?;
    let [first, ..] = prefix;
    if first & 0b11 == 0b10 {
        return Ok(prefix);
    }
    Err(format!("{text} is not locally administered and unicast: its second digit must be 2, 6, a or e"))
}

/// `web-{01..03}` is web-01, web-02, web-03; several ranges give every combination; without one it is itself.
///
/// # Errors
/// What is wrong with it.
pub fn names(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let bad = || format!("`{text}`: a range is written as {{01..20}}");
    let (range, after) = rest.split_once('}').ok_or_else(bad)?;
    let (first, last) = range.split_once("..").ok_or_else(bad)?;
    let number =
        |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (from, to) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
    let tails = names(after)?;
    let count = to.checked_sub(from).and_then(|span| usize::try_from(span).ok()).ok_or_else(bad)?;
    let all = count.saturating_add(1).saturating_mul(tails.len());
    if all > FLEET_MAX {
        return Err(format!("`{text}` names {all} VMs; at most {FLEET_MAX} are made at once"));
    }
    let width = first.len();
    let one = |number: u32| tails.iter().map(move |tail| format!("{before}{number:0width$}{tail}"));
    Ok((from..=to).flat_map(one).collect())
}

/// The wishes of `--name`.
///
/// # Errors
/// Everything that is wrong.
pub fn from_name(pattern: &str, defaults: &Defaults) -> Result<Vec<Wish>, Vec<String>> {
    wishes("--name", &[("name", pattern)], defaults)
}

/// The wishes of a CSV file with a header; `#` begins a comment line.
///
/// # Errors
/// Everything that is wrong, with file and line.
pub fn from_csv(file: &str, text: &str, defaults: &Defaults) -> Result<Vec<Wish>, Vec<String>> {
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let mut rows = lines
        .map(|(at, line)| (format!("{file}:{}", at + 1), line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let Some((place, head)) = rows.next() else { return Err(vec![format!("{file}: it names no VM")]) };
    let head: Vec<String> = cells(head).iter().map(|cell| cell.to_ascii_lowercase()).collect();
    if let Some(unknown) = head.iter().find(|cell| !COLUMNS.contains(&cell.as_str())) {
        return Err(vec![format!("{place}: no column `{unknown}`; there are {}", COLUMNS.join(", "))]);
    }
    if !head.iter().any(|cell| cell == "name") {
        return Err(vec![format!("{place}: the first line names the columns, and one must be `name`")]);
    }
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for (place, line) in rows {
        let cells = cells(line);
        if cells.len() > head.len() {
            problems.push(format!("{place}: {} cells, but {} columns", cells.len(), head.len()));
            continue;
        }
        let row: Vec<(&str, &str)> =
            head.iter().zip(&cells).map(|(column, cell)| (column.as_str(), cell.as_str())).collect();
        match wishes(&place, &row, defaults) {
            Ok(wishes) => all.extend(wishes),
            Err(found) => problems.extend(found),
        }
    }
    if all.is_empty() && problems.is_empty() {
        problems.push(format!("{file}: it names no VM"));
    }
    if all.len() > FLEET_MAX {
        problems.push(format!("{file}: {} VMs; at most {FLEET_MAX} are made at once", all.len()));
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// The wishes of one row.
fn wishes(place: &str, row: &[(&str, &str)], defaults: &Defaults) -> Result<Vec<Wish>, Vec<String>> {
    let mut problems = Vec::new();
    let mut note = |problem: String| problems.push(format!("{place}: {problem}"));
    let cell = |column: &str| {
        row.iter().find(|(name, _)| *name == column).map(|(_, cell)| *cell).filter(|cell| !cell.is_empty())
    };
    let mut bytes = |column: &str, default: Option<u64>| match cell(column).map(size) {
        None => default,
        Some(Ok(bytes)) => Some(bytes),
        Some(Err(problem)) => {
            note(format!("{column}: {problem}"));
            None
        }
    };
    let (memory, disk) = (bytes("memory", defaults.memory), bytes("disk", defaults.disk));
    let text =
        |column: &str, default: &Option<String>| cell(column).map(str::to_owned).or_else(|| default.clone());
    let vcpus = match cell("vcpus").map(|text| (text, text.parse::<u32>())) {
        None => defaults.vcpus,
        Some((_, Ok(count))) if count > 0 => Some(count),
        Some((text, Ok(_) | Err(_))) => {
            note(format!("vcpus: `{text}` is not a number from 1 on"));
            None
        }
    };
    let mac = cell("mac").and_then(|text| match text.parse::<MacAddr>() {
        Ok(mac) => Some(mac),
        Err(bad) => {
            note(format!("mac: {bad}"));
            None
        }
    });
    let names = names(cell("name").unwrap_or_default()).unwrap_or_else(|problem| {
        note(problem);
        Vec::new()
    });
    if names.iter().any(|name| name.trim().is_empty() || name.contains(char::is_control)) {
        note("a VM needs a name".to_owned());
    }
    if names.len() > 1 && mac.is_some() {
        note(format!("one MAC address for {} VMs", names.len()));
    }
    let (template, network) = (text("template", &defaults.template), text("network", &defaults.network));
    for (what, value) in [("template", &template), ("network", &network)] {
        if value.is_none() {
            note(format!("no {what}; name one with --{what}, or in a column `{what}`"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let one = |name: String| Wish {
        place: place.to_owned(),
        name,
        template: template.clone().unwrap_or_default(),
        network: network.clone().unwrap_or_default(),
        sr: text("sr", &defaults.sr),
        memory,
        vcpus,
        disk,
        mac,
        tag: text("tag", &defaults.tag).unwrap_or_else(|| DEFAULT_TAG.to_owned()),
    };
    Ok(names.into_iter().map(one).collect())
}

/// One line of CSV: cells between commas or semicolons, quoted ones with doubled quotes.
pub fn cells(row: &str) -> Vec<String> {
    let (mut all, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = row.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' | ';' if !quoted => all.push(std::mem::take(&mut cell).trim().to_owned()),
            other => cell.push(other),
        }
    }
    all.push(cell.trim().to_owned());
    all
}
