//! Columns of text, as wide as their widest entry.

/// Returns the rows under their heads, two spaces between columns. A column whose head begins with
/// `>` stands to the right.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(column, head)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(head.trim_start_matches('>').chars().count())
        })
        .collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(heads).zip(&widths);
        let padded = cells.map(|((cell, head), width)| match head.starts_with('>') {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let heads_line: Vec<String> = heads
        .iter()
        .map(|head| head.trim_start_matches('>').to_owned())
        .collect();
    std::iter::once(line(&heads_line))
        .chain(rows.iter().map(|row| line(row)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_entry() {
        let rows = [
            vec!["worker1".to_owned(), "7".to_owned()],
            vec!["w".to_owned(), "12345".to_owned()],
        ];
        assert_eq!(
            table(&["name", ">flows"], &rows),
            "name     flows\nworker1      7\nw        12345\n"
        );
    }
}
