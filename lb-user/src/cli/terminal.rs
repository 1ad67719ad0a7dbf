//! The width and the colours of the verbs' output.

use std::{
    env,
    io::{self, IsTerminal},
    sync::OnceLock,
};

use ratatui::crossterm::terminal;

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    Always,
    Never,
}

static COLOR: OnceLock<Color> = OnceLock::new();

/// Sets the colour for the whole process. Only the first call counts.
pub fn set_color(color: Color) {
    COLOR.get_or_init(|| color);
}

/// The meaning of a text, shown by its colour. A sign or a word has the same meaning, so that no colour is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paint {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
    Dim,
    Bold,
}

/// The properties of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// In characters; `None` for a pipe or a file, whose lines may have any length.
    pub width: Option<usize>,
    pub has_color: bool,
}

impl Output {
    pub fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    pub fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(is_terminal: bool) -> Self {
        let size = || terminal::size().ok().map(|(width, _)| usize::from(width));
        Self {
            width: columns(env::var("COLUMNS").ok().as_deref())
                .or_else(|| is_terminal.then(size).flatten().filter(|width| *width > 0)),
            has_color: has_color(is_terminal),
        }
    }

    pub fn paint(self, text: &str, paint: Paint) -> String {
        let code = match paint {
            Paint::Plain => return text.to_owned(),
            Paint::Good => "32",
            Paint::Warning => "33",
            Paint::Bad => "31",
            Paint::Dim => "2",
            Paint::Bold => "1",
        };
        match self.has_color && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Formats a warning, wrapped to the width.
    pub fn warning(self, text: &str) -> String {
        let lines = self.wrap_lines(&format!("warning: {text}"));
        self.paint(lines.trim_end(), Paint::Warning)
    }

    /// Wraps a paragraph at spaces. The first line begins at column `indent` already; the others are indented to it. A
    /// word that is longer than a line is not broken.
    pub fn wrap(self, text: &str, indent: usize) -> String {
        wrap(text, indent, self.width)
    }

    /// Wraps every line of a text at spaces; continuation lines are indented by two columns more.
    pub fn wrap_lines(self, text: &str) -> String {
        let line = |line: &str| {
            let words = line.trim_start();
            let indent = line.len() - words.len();
            let fits = self.width.is_none_or(|width| visible(line) <= width);
            match fits {
                true => format!("{line}\n"),
                false => format!("{line:.indent$}{}\n", wrap(words, indent + 2, self.width)),
            }
        };
        text.lines().map(line).collect()
    }
}

/// A text whose lines are wrapped to the width.
pub struct WrappedText {
    pub text: String,
    pub output: Output,
}

impl WrappedText {
    pub fn line(&mut self, indent: usize, line: &str) {
        self.painted(indent, line, Paint::Plain);
    }

    pub fn painted(&mut self, indent: usize, line: &str, paint: Paint) {
        let line = self.output.wrap(line, indent + 2);
        self.text += &format!("{:indent$}{}\n", "", self.output.paint(&line, paint));
    }
}

/// Whether output to a terminal, or to something else, has colours.
pub fn has_color(is_terminal: bool) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    match COLOR.get().copied().unwrap_or_default() {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && !is_dumb && !is_set("NO_COLOR"),
    }
}

fn columns(variable: Option<&str>) -> Option<usize> {
    variable?.trim().parse().ok().filter(|width| *width > 0)
}

fn wrap(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let mut wrapped = String::new();
    let mut used = indent;
    for word in text.split(' ') {
        let length = visible(word);
        if wrapped.is_empty() {
            used += length;
        } else if used + 1 + length > width {
            wrapped += &format!("\n{:indent$}", "");
            used = indent + length;
        } else {
            wrapped.push(' ');
            used += 1 + length;
        }
        wrapped += word;
    }
    wrapped
}

/// The number of characters that a terminal shows of a painted text.
fn visible(text: &str) -> usize {
    let painted = text.split('\x1b').enumerate().map(|(at, part)| match at {
        0 => part,
        _ => part.split_once('m').map_or("", |(_, rest)| rest),
    });
    painted.map(|part| part.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_at_spaces_and_keeps_long_words() {
        assert_eq!(wrap("a bb ccc", 2, Some(7)), "a bb\n  ccc");
        assert_eq!(wrap("aaaaaaaaaa b", 0, Some(4)), "aaaaaaaaaa\nb");
        assert_eq!(wrap("any length", 0, None), "any length");
        let output = Output {
            width: Some(12),
            has_color: false,
        };
        let text = "short\n  one two three four\n";
        assert_eq!(
            output.wrap_lines(text),
            "short\n  one two\n    three\n    four\n"
        );
    }

    #[test]
    fn columns_are_taken_from_the_environment() {
        assert_eq!(columns(Some("72")), Some(72));
        for text in [None, Some(""), Some("0"), Some("wide")] {
            assert_eq!(columns(text), None, "{text:?}");
        }
    }

    #[test]
    fn paints_only_where_there_is_colour() {
        let paint = |has_color| {
            let width = None;
            Output { width, has_color }.paint("down", Paint::Bad)
        };
        assert_eq!(paint(false), "down");
        assert_eq!(paint(true), "\x1b[31mdown\x1b[0m");
        assert_eq!(visible(&paint(true)), 4);
    }
}
