//! `@FILE` on the command line: the selectors that stand in a file. One a line; of CSV the first column (or the one
//! headed `vm`, `name`, `uuid` or `selector`); of TOML the list `vms`.

use std::path::Path;

use super::{Ended, Stop};
use crate::provision::creation::fleet::cells;

/// The largest list, in bytes.
const FILE_LIMIT: usize = 1 << 20;

/// Selectors with every `@FILE` replaced by what stands in it.
pub(super) fn expand(given: &[String]) -> Result<Vec<String>, Stop> {
    let mut all = Vec::new();
    for selector in given {
        match selector.strip_prefix('@') {
            Some(file) => {
                let bad = |why: String| Stop::new(Ended::Usage, format!("{file}: {why}"));
                let text =
                    std::fs::read_to_string(file).map_err(|error| bad(format!("cannot be read: {error}")))?;
                if text.len() > FILE_LIMIT {
                    return Err(bad(format!("it has more than {FILE_LIMIT} bytes")));
                }
                let toml = Path::new(file).extension().is_some_and(|end| end.eq_ignore_ascii_case("toml"));
                let found = if toml { from_toml(&text) } else { from_csv(&text) };
                all.extend(found.map_err(bad)?);
            }
            None => all.push(selector.clone()),
        }
    }
    Ok(all)
}

fn from_toml(text: &str) -> Result<Vec<String>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let wanted = "it needs a list of selectors: vms = [\"web-1\", \"tag=new\"]";
    let list = table.get("vms").and_then(|vms| vms.as_array()).ok_or(wanted)?;
    let found: Option<Vec<String>> = list.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    found.filter(|found| !found.is_empty()).ok_or_else(|| wanted.to_owned())
}

fn from_csv(text: &str) -> Result<Vec<String>, String> {
    let rows = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let mut rows: Vec<Vec<String>> =
        rows.filter(|row| !row.is_empty() && !row.starts_with('#')).map(cells).collect();
    let headed = rows.first().and_then(|head| {
        head.iter().position(|cell| HEADS.iter().any(|known| cell.eq_ignore_ascii_case(known)))
    });
    let column = headed.unwrap_or(0);
    if headed.is_some() {
        rows.remove(0);
    }
    let found: Vec<String> = rows
        .into_iter()
        .filter_map(|row| row.into_iter().nth(column))
        .filter(|cell| !cell.is_empty())
        .collect();
    if found.is_empty() { Err("it names no VM".to_owned()) } else { Ok(found) }
}

const HEADS: [&str; 4] = ["vm", "name", "uuid", "selector"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_from_lines_csv_and_toml() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            ("plain", "web-1\n# no\n\nweb-2\n", vec!["web-1", "web-2"]),
            ("a.csv", "role,VM,note\nx,web-1,\"a, b\"\ny,\"the \"\"db\"\"\",\n", vec!["web-1", "the \"db\""]),
            ("b.csv", "web-1,mini\nweb-2,mini\n", vec!["web-1", "web-2"]),
            ("c.toml", "vms = [\"web-1\", \"tag=new\"]\n", vec!["web-1", "tag=new"]),
        ];
        for (name, text, expected) in cases {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let given = ["first".to_owned(), format!("@{}", path.display())];
            let mut wanted = vec!["first"];
            wanted.extend(expected);
            assert_eq!(expand(&given).unwrap(), wanted, "{name}");
        }
    }

    #[test]
    fn file_that_names_no_vm_is_a_usage_error() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("a", "\n# x\n"), ("b.toml", "vms = []\n"), ("c.toml", "vms = 1\n"), ("d.toml", "[")]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(expand(&[format!("@{}", path.display())]).unwrap_err().ended, Ended::Usage, "{name}");
        }
    }
}
