//! Tables and lists as text. Pure.

/// Rows beneath a head, columns aligned; trailing blanks cut.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Names and values, one a line, values aligned; empty values are shown as `-`.
pub(super) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(name, value)| {
            let value = if value.is_empty() { "-" } else { value };
            let indented = value.replace('\n', &format!("\n{:width$}  ", ""));
            format!("{name:width$}  {indented}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["äöü".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    bb\näöü  c\n");
    }

    #[test]
    fn empty_values_are_visible_and_lines_stay_aligned() {
        assert_eq!(fields(&[("a", String::new()), ("bcd", "x\ny".to_owned())]), "a    -\nbcd  x\n     y\n");
    }
}
