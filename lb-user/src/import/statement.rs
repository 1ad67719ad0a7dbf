//! The syntax that nginx and keepalived share: words, quotes, comments, and statements in braces. HAProxy has the
//! words without the braces.

use std::{fmt, sync::Arc};

use thiserror::Error;

/// The line of a file, for messages. The order is that of the lines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    pub file: Arc<str>,
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What ends a statement that has no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminator {
    /// `;`, as in nginx.
    Semicolon,
    /// The end of the line, as in keepalived.
    Newline,
}

/// A statement: at least one word, and the statements between its braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub location: Location,
    pub words: Vec<String>,
    pub block: Vec<Statement>,
}

impl Statement {
    /// Returns the first word, the name of the directive.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Returns the words after the first one.
    pub fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Returns the word at this position after the first one, or an empty text.
    pub fn argument(&self, index: usize) -> &str {
        self.arguments().get(index).map_or("", String::as_str)
    }

    /// Returns the statements of this name in the block.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.block.iter().filter(move |it| it.name() == name)
    }

    /// Returns the first statement of this name in the block.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.block.iter().find(|it| it.name() == name)
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// Why a file cannot be parsed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SyntaxError {
    #[error("{0}: the quote {1} is not closed")]
    OpenQuote(Location, char),
    #[error("{0}: `}}` without `{{` before it")]
    UnexpectedClose(Location),
    #[error("{0}: `{{` is not closed: expected `}}` before the end of the file")]
    MissingClose(Location),
    #[error("{0}: expected `;` or `{{` after \"{1}\"")]
    Unterminated(Location, String),
    #[error("{0}: blocks are nested deeper than {MAX_DEPTH}")]
    TooDeep(Location),
}

/// No configuration nests deeper; nginx and keepalived use six levels at most.
const MAX_DEPTH: usize = 32;

/// A lexical token.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    Semicolon,
    Newline,
}

/// Splits one line of HAProxy into its words (HAProxy's configuration manual, section 2.2).
///
/// # Errors
///
/// When a quote is not closed.
pub fn words(line: &str, location: &Location) -> Result<Vec<String>, SyntaxError> {
    let mut lexer = Lexer::new(line, location.clone(), &['#'], "");
    let mut words = Vec::new();
    while let Some((_, token)) = lexer.next_token()? {
        if let Token::Word(word) = token {
            words.push(word);
        }
    }
    Ok(words)
}

/// Parses a file of statements. `comments` are the characters that begin a comment at the start of a word.
///
/// # Errors
///
/// When a quote, a brace or a statement is not closed.
pub fn parse(
    text: &str,
    file: &Arc<str>,
    comments: &[char],
    terminator: Terminator,
) -> Result<Vec<Statement>, SyntaxError> {
    let start = Location {
        file: Arc::clone(file),
        line: 1,
    };
    let special = match terminator {
        Terminator::Semicolon => "{};",
        Terminator::Newline => "{}",
    };
    let mut lexer = Lexer::new(text, start, comments, special);
    // The statements of each open block, outermost first, each with the statement that owns the block.
    let mut owners: Vec<(Statement, Vec<Statement>)> = Vec::new();
    let mut statements = Vec::new();
    let mut current: Option<Statement> = None;
    while let Some((location, token)) = lexer.next_token()? {
        match token {
            Token::Word(word) => current
                .get_or_insert_with(|| Statement {
                    location,
                    words: Vec::new(),
                    block: Vec::new(),
                })
                .words
                .push(word),
            Token::Open => {
                // keepalived allows the brace on a line of its own.
                let owner = current.take().or_else(|| match terminator {
                    Terminator::Newline => statements.pop(),
                    Terminator::Semicolon => None,
                });
                let owner = owner
                    .ok_or_else(|| SyntaxError::Unterminated(location.clone(), String::new()))?;
                if owners.len() == MAX_DEPTH {
                    return Err(SyntaxError::TooDeep(location));
                }
                owners.push((owner, std::mem::take(&mut statements)));
            }
            Token::Close => {
                match (current.take(), terminator) {
                    (Some(open), Terminator::Semicolon) => return Err(unterminated(&open)),
                    (open, _) => statements.extend(open),
                }
                let (mut owner, outer) =
                    owners.pop().ok_or(SyntaxError::UnexpectedClose(location))?;
                owner.block = std::mem::replace(&mut statements, outer);
                statements.push(owner);
            }
            Token::Semicolon => statements.extend(current.take()),
            Token::Newline if terminator == Terminator::Newline => {
                statements.extend(current.take());
            }
            Token::Newline => {}
        }
    }
    if let Some((owner, _)) = owners.pop() {
        return Err(SyntaxError::MissingClose(owner.location));
    }
    match (current, terminator) {
        (Some(open), Terminator::Semicolon) => return Err(unterminated(&open)),
        (open, _) => statements.extend(open),
    }
    Ok(statements)
}

fn unterminated(statement: &Statement) -> SyntaxError {
    SyntaxError::Unterminated(statement.location.clone(), statement.to_string())
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    location: Location,
    comments: &'a [char],
    /// The characters that are a token each and end a word.
    special: &'a str,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, location: Location, comments: &'a [char], special: &'a str) -> Self {
        Self {
            rest: text.chars().peekable(),
            location,
            comments,
            special,
        }
    }

    fn next_token(&mut self) -> Result<Option<(Location, Token)>, SyntaxError> {
        while let Some(&next) = self.rest.peek() {
            let location = self.location.clone();
            if next == '\n' {
                self.rest.next();
                self.location.line += 1;
                return Ok(Some((location, Token::Newline)));
            }
            if next.is_whitespace() {
                self.rest.next();
            } else if self.comments.contains(&next) {
                while self.rest.next_if(|it| *it != '\n').is_some() {}
            } else if self.special.contains(next) {
                self.rest.next();
                let token = match next {
                    '{' => Token::Open,
                    '}' => Token::Close,
                    _ => Token::Semicolon,
                };
                return Ok(Some((location, token)));
            } else {
                return Ok(Some((location, Token::Word(self.word()?))));
            }
        }
        Ok(None)
    }

    fn word(&mut self) -> Result<String, SyntaxError> {
        let mut word = String::new();
        while let Some(&next) = self.rest.peek() {
            match next {
                '"' | '\'' => {
                    self.rest.next();
                    self.quoted(next, &mut word)?;
                }
                '\\' => {
                    self.rest.next();
                    match self.rest.next_if(|it| *it != '\n') {
                        Some(escaped) => word.push(escaped),
                        None => word.push('\\'),
                    }
                }
                // nginx: ${variable}.
                '{' if word.ends_with('$') && self.special.contains('{') => {
                    while let Some(part) = self.rest.next_if(|it| *it != '\n') {
                        word.push(part);
                        if part == '}' {
                            break;
                        }
                    }
                }
                it if it.is_whitespace() || self.special.contains(it) => break,
                it => {
                    self.rest.next();
                    word.push(it);
                }
            }
        }
        Ok(word)
    }

    /// Reads up to the closing quote, which may be on another line.
    fn quoted(&mut self, quote: char, word: &mut String) -> Result<(), SyntaxError> {
        let opened_at = self.location.clone();
        while let Some(next) = self.rest.next() {
            match next {
                it if it == quote => return Ok(()),
                '\\' => match self.rest.next() {
                    Some(it) if it == quote || it == '\\' => word.push(it),
                    Some(it) => word.extend(['\\', it]),
                    None => break,
                },
                it => {
                    if it == '\n' {
                        self.location.line += 1;
                    }
                    word.push(it);
                }
            }
        }
        Err(SyntaxError::OpenQuote(opened_at, quote))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file() -> Arc<str> {
        Arc::from("a.conf")
    }

    fn shape(statements: &[Statement]) -> String {
        let shown = statements.iter().map(|it| {
            let block = match it.block.is_empty() {
                true => String::new(),
                false => format!(" {{{}}}", shape(&it.block)),
            };
            format!("{}:{}{block}", it.location.line, it.words.join("|"))
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn reads_statements_of_nginx() {
        let text = "a b; # c\nd 'e f' {\n  g ${h}i\n j;\n k {}\n}";
        let parsed = parse(text, &file(), &['#'], Terminator::Semicolon).unwrap();
        assert_eq!(shape(&parsed), "1:a|b, 2:d|e f {3:g|${h}i|j, 5:k}");
    }

    #[test]
    fn reads_statements_of_keepalived() {
        let text = "! note\na b {\n c d\n e {\n f 1 }\n}\ng\n{\n h\n}\n";
        let parsed = parse(text, &file(), &['!', '#'], Terminator::Newline).unwrap();
        assert_eq!(shape(&parsed), "2:a|b {3:c|d, 4:e {5:f|1}}, 7:g {9:h}");
    }

    #[test]
    fn reads_words_of_haproxy() {
        let location = Location {
            file: file(),
            line: 1,
        };
        let words = words(r#"acl x path_beg { "a b" } \# c\ d # note"#, &location).unwrap();
        assert_eq!(words, ["acl", "x", "path_beg", "{", "a b", "}", "#", "c d"]);
    }

    #[test]
    fn names_what_is_not_closed() {
        let error = |text: &str| {
            parse(text, &file(), &['#'], Terminator::Semicolon)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(error("a;\nb 'c;\n"), "a.conf:2: the quote ' is not closed");
        assert_eq!(error("a;\n}"), "a.conf:2: `}` without `{` before it");
        assert_eq!(
            error("a {\nb;\n"),
            "a.conf:1: `{` is not closed: expected `}` before the end of the file"
        );
        assert_eq!(error("a b"), "a.conf:1: expected `;` or `{` after \"a b\"");
        assert!(error(&"a{".repeat(100)).contains("nested deeper than 32"));
    }

    proptest! {
        #[test]
        fn reads_any_text_without_a_panic(text in r#"[a-c{};"'\\#!$ \n]{0,60}"#) {
            _ = parse(&text, &file(), &['#'], Terminator::Semicolon);
            _ = parse(&text, &file(), &['!', '#'], Terminator::Newline);
            _ = words(&text, &Location { file: file(), line: 1 });
        }
    }
}
