//! Tables that fit a width without cutting a figure: figures are abbreviated or left out, names shortened in their
//! middle.

use super::{
    shorten::shorten,
    terminal::{Output, Paint},
};

/// The space between columns.
const GAP: usize = 2;

/// Names are shortened below this length only after all columns that may be left out are left out. An IPv4 address with
/// its port has this length.
const PREFERRED_NAME: usize = 21;

/// The minimum length of a shortened name.
const MIN_NAME: usize = 8;

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub head: &'static str,
    pub is_right: bool,
    /// A column with a higher rank is left out before one with a lower; one with rank 0 never is.
    pub rank: u8,
    /// Whether its cells may be shortened in their middle.
    pub is_name: bool,
    /// Whether its sentences are moved below the row if they do not fit. Only for the last column.
    pub is_remark: bool,
    /// The minimum width, so that the columns do not move when figures change.
    pub least: usize,
}

impl Column {
    /// A column of short words, which stay whole.
    pub const fn word(head: &'static str, rank: u8) -> Self {
        Self {
            head,
            is_right: false,
            rank,
            is_name: false,
            is_remark: false,
            least: 0,
        }
    }

    /// A column of figures, which are aligned to the right.
    pub const fn figure(head: &'static str, rank: u8) -> Self {
        Self {
            is_right: true,
            ..Self::word(head, rank)
        }
    }

    /// A column of names, each of which stays different from the others when it is shortened.
    pub const fn name(head: &'static str, rank: u8) -> Self {
        Self {
            is_name: true,
            ..Self::word(head, rank)
        }
    }

    /// The last column, of sentences.
    pub const fn remark(head: &'static str) -> Self {
        Self {
            is_remark: true,
            ..Self::word(head, 0)
        }
    }

    pub const fn at_least(self, least: usize) -> Self {
        Self { least, ..self }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Cell {
    pub text: String,
    /// The same in fewer characters.
    pub short: Option<String>,
    pub paint: Paint,
}

impl Cell {
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    pub fn short(self, short: impl Into<String>) -> Self {
        Self {
            short: Some(short.into()),
            ..self
        }
    }

    pub fn paint(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }

    fn shown(&self, is_short: bool) -> &str {
        match &self.short {
            Some(short) if is_short => short,
            _ => &self.text,
        }
    }
}

/// A row, with sentences about it that are printed below.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub cells: Vec<Cell>,
    pub notes: Vec<Cell>,
}

impl Row {
    pub fn new(cells: Vec<Cell>) -> Self {
        Self {
            cells,
            notes: Vec::new(),
        }
    }
}

/// A table cut to a width.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted {
    /// The indices of the columns that fit.
    pub shown: Vec<usize>,
    /// The widths of the columns that are shown.
    pub widths: Vec<usize>,
    /// The cells of each row that are shown.
    pub texts: Vec<Vec<String>>,
}

/// Fits a table into `width` characters. It is wider only if names of [`MIN_NAME`] characters and columns of rank 0 do
/// not fit.
pub fn fit(columns: &[Column], rows: &[Row], gap: usize, width: Option<usize>) -> Fitted {
    let width = width.unwrap_or(usize::MAX);
    let natural = |place: usize, is_short: bool| {
        let Column { head, least, .. } = columns[place];
        let least = if is_short { least.min(5) } else { least };
        let cells = rows.iter().filter_map(|row| row.cells.get(place));
        let widest = cells.map(|cell| cell.shown(is_short).chars().count()).max();
        widest.unwrap_or(0).max(head.chars().count()).max(least)
    };
    let all = |is_short| (0..columns.len()).map(|it| natural(it, is_short)).collect();
    let forms: [Vec<usize>; 2] = [all(false), all(true)];
    // The width of the table with names of at most `name` characters.
    let total = |shown: &[usize], is_short: bool, name: usize| {
        let of = |it: &usize| match forms[usize::from(is_short)][*it] {
            natural if columns[*it].is_name => natural.min(name),
            natural => natural,
        };
        let gaps = gap * shown.len().saturating_sub(1);
        shown.iter().map(of).sum::<usize>() + gaps
    };
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    while total(&shown, true, PREFERRED_NAME) > width {
        let droppable = shown.iter().filter(|it| columns[**it].rank > 0);
        let Some(last) = droppable.max_by_key(|it| columns[**it].rank).copied() else {
            break;
        };
        shown.retain(|it| *it != last);
    }
    let is_short = total(&shown, false, usize::MAX) > width;
    let mut widths: Vec<usize> = (shown.iter())
        .map(|it| forms[usize::from(is_short)][*it])
        .collect();
    let sum = |widths: &[usize]| widths.iter().sum::<usize>() + gap * shown.len().saturating_sub(1);
    while sum(&widths) > width {
        let names = (0..shown.len()).filter(|it| columns[shown[*it]].is_name);
        let widest = names.max_by_key(|it| widths[*it]);
        let Some(widest) = widest.filter(|it| widths[*it] > MIN_NAME) else {
            break;
        };
        widths[widest] -= 1;
    }
    let texts = texts(columns, rows, &shown, &widths, is_short);
    Fitted {
        shown,
        widths,
        texts,
    }
}

fn texts(
    columns: &[Column],
    rows: &[Row],
    shown: &[usize],
    widths: &[usize],
    is_short: bool,
) -> Vec<Vec<String>> {
    let column = |(place, width): (&usize, &usize)| {
        let cell = |row: &Row| match row.cells.get(*place) {
            Some(cell) => cell.shown(is_short).to_owned(),
            None => String::new(),
        };
        let cells: Vec<String> = rows.iter().map(cell).collect();
        match columns[*place].is_name {
            true => shorten(&cells, *width),
            false => cells,
        }
    };
    let by_column: Vec<Vec<String>> = shown.iter().zip(widths).map(column).collect();
    (0..rows.len())
        .map(|row| by_column.iter().map(|cells| cells[row].clone()).collect())
        .collect()
}

/// Formats the rows under their heads, indented by `indent` columns, and names the columns that do not fit.
pub fn table(columns: &[Column], rows: &[Row], indent: usize, output: Output) -> String {
    let room = output.width.map(|width| width.saturating_sub(indent));
    if let Some((last, others)) = columns.split_last()
        && last.is_remark
        && room.is_some_and(|room| natural_width(columns, rows) > room)
    {
        let rows: Vec<Row> = rows.iter().cloned().map(move_last_cell_to_notes).collect();
        return table(others, &rows, indent, output);
    }
    let gap = match fit(columns, rows, GAP, room).shown.len() == columns.len() {
        true => GAP,
        false => 1,
    };
    let fitted = fit(columns, rows, gap, room);
    let line = |cells: Vec<(&str, Paint)>| {
        let mut line = " ".repeat(indent);
        let last = cells.len().saturating_sub(1);
        for (at, (text, paint)) in cells.into_iter().enumerate() {
            let pad = " ".repeat(fitted.widths[at].saturating_sub(text.chars().count()));
            let painted = output.paint(text, paint);
            line += &match (columns[fitted.shown[at]].is_right, at == last) {
                (true, _) => pad + &painted,
                (false, true) => painted,
                (false, false) => painted + &pad,
            };
            if at < last {
                line += &" ".repeat(gap);
            }
        }
        format!("{}\n", line.trim_end())
    };
    let head = |place: &usize| (columns[*place].head, Paint::Dim);
    let mut text = line(fitted.shown.iter().map(head).collect());
    for (row, texts) in rows.iter().zip(&fitted.texts) {
        let cell = |(place, text): (&usize, _)| {
            let paint = row.cells.get(*place).map_or(Paint::Plain, |it| it.paint);
            (String::as_str(text), paint)
        };
        text += &line(fitted.shown.iter().zip(texts).map(cell).collect());
        for Cell {
            text: note, paint, ..
        } in &row.notes
        {
            let note = output.wrap(note, indent + 4);
            text += &format!("{:1$}{2}\n", "", indent + 4, output.paint(&note, *paint));
        }
    }
    let lost = (0..columns.len()).filter(|it| !fitted.shown.contains(it));
    let lost: Vec<&str> = lost.map(|it| columns[it].head).collect();
    if !lost.is_empty() {
        let note = format!("no room for {}; --json has all", lost.join(", "));
        let note = output.wrap(&note, indent);
        text += &format!("{:indent$}{}\n", "", output.paint(&note, Paint::Dim));
    }
    text
}

fn natural_width(columns: &[Column], rows: &[Row]) -> usize {
    let widths = fit(columns, rows, GAP, None).widths;
    widths.iter().sum::<usize>() + GAP * columns.len().saturating_sub(1)
}

/// Moves the last cell below the row, unless it is empty.
fn move_last_cell_to_notes(mut row: Row) -> Row {
    if let Some(remark) = row.cells.pop().filter(|it| !it.text.is_empty()) {
        row.notes.insert(0, remark);
    }
    row
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLUMNS: [Column; 4] = [
        Column::name("name", 0),
        Column::name("address", 2),
        Column::figure("flows", 0),
        Column::figure("bytes", 1),
    ];

    fn row(name: &str, address: &str, flows: &str, bytes: (&str, &str)) -> Row {
        Row::new(vec![
            Cell::new(name),
            Cell::new(address),
            Cell::new(flows),
            Cell::new(bytes.0).short(bytes.1),
        ])
    }

    fn shown(rows: &[Row], width: Option<usize>) -> String {
        let has_color = false;
        table(&COLUMNS, rows, 0, Output { width, has_color })
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_entry() {
        let rows = [
            row("worker1", "10.0.0.1:80", "7", ("1.0 MiB", "1.0M")),
            row("w", "10.0.0.12:80", "12345", ("10 B", "10B")),
        ];
        let whole = "name     address       flows    bytes\n\
                     worker1  10.0.0.1:80       7  1.0 MiB\n\
                     w        10.0.0.12:80  12345     10 B\n";
        assert_eq!(shown(&rows, None), whole);
        assert_eq!(shown(&rows, Some(37)), whole);
        let short = "name     address       flows  bytes\n\
                     worker1  10.0.0.1:80       7   1.0M\n\
                     w        10.0.0.12:80  12345    10B\n";
        assert_eq!(shown(&rows, Some(36)), short);
        let narrow = "name    flows   bytes\n\
                      worker1     7 1.0 MiB\n\
                      w       12345    10 B\n\
                      no room for address;\n\
                      --json has all\n";
        assert_eq!(shown(&rows, Some(21)), narrow);
    }

    #[test]
    fn notes_are_printed_below_their_row() {
        let mut one = row("w", "a:1", "1", ("1 B", "1B"));
        one.notes.push(Cell::new("drained by root since yesterday"));
        let text = "name  address  flows  bytes\n\
                    w     a:1          1    1 B\n    drained by root since\n    yesterday\n";
        assert_eq!(shown(&[one], Some(27)), text);
    }

    proptest! {
        #[test]
        fn every_figure_is_whole_at_any_width(
            width in 24_usize..120,
            entries in prop::collection::vec(("[a-z]{1,9}-[a-z0-9-]{0,40}", 0_u64..u64::MAX), 1..30),
        ) {
            let rows: Vec<Row> = entries.iter().map(|(name, number)| {
                let flows = (number % 100_000).to_string();
                let address = format!("[2001:db8::{:x}]:{}", number % 65_536, number % 10_000);
                row(name, &address, &flows, (&number.to_string(), &format!("{}M", number >> 20)))
            }).collect();
            let text = shown(&rows, Some(width));
            let has_bytes = text.starts_with("name") && text.lines().next().unwrap().contains("bytes");
            for (row, line) in rows.iter().zip(text.lines().skip(1)) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let figures = &words[words.len() - if has_bytes { 2 } else { 1 }..];
                prop_assert_eq!(figures[0], &row.cells[2].text);
                if has_bytes {
                    let cell = &row.cells[3];
                    let forms = [Some(cell.text.as_str()), cell.short.as_deref()];
                    prop_assert!(forms.contains(&Some(figures[1])), "{}", line);
                }
                prop_assert!(line.chars().count() <= width, "{}", line);
            }
        }
    }
}
