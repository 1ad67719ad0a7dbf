//! Reads and decodes text files: UTF-8, with or without a byte order mark.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

/// U+FEFF, with which Windows editors begin a file.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// The size of the largest file that memlb reads: a device such as `/dev/zero` has no end.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a whole file.
///
/// # Errors
///
/// The file cannot be read, or is too large for a text that an operator writes.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        let limit = MAX_BYTES >> 20;
        let message = format!("it is larger than {limit} MiB, so it is not such a file");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Why a file is not UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotUtf8 {
    /// The name of the encoding, with its byte order.
    Utf16(&'static str),
    /// Bytes that are not UTF-8, such as letters in Latin-1 and Windows-1252.
    Bytes { line: usize, first: u8 },
    /// A text file has no zero byte.
    Binary { line: usize },
}

impl NotUtf8 {
    /// Returns the line with the first wrong byte, counted from 1; `None` if the whole file has another encoding.
    pub fn line(self) -> Option<usize> {
        match self {
            Self::Utf16(_) => None,
            Self::Bytes { line, .. } | Self::Binary { line } => Some(line),
        }
    }

    /// Returns the remedy for the file at `path`.
    pub fn remedy(self, path: &str) -> String {
        let from = match self {
            Self::Utf16(name) => name,
            Self::Bytes { .. } => "WINDOWS-1252",
            Self::Binary { .. } => {
                return "check the path: this is not a text file".to_owned();
            }
        };
        format!(
            "iconv -f {from} -t UTF-8 {path} > {path}.utf8, check the result, and replace the file by \
             it; or save the file as UTF-8 in your editor"
        )
    }
}

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf16(name) => write!(f, "the file is encoded in {name}"),
            Self::Bytes { first, .. } => write!(
                f,
                "the byte {first:#04x} is not UTF-8; the file may be encoded in Latin-1 or \
                 Windows-1252"
            ),
            Self::Binary { .. } => {
                f.write_str("the file contains a zero byte, so it is not a text file")
            }
        }
    }
}

/// Checks that these bytes are text in UTF-8.
///
/// # Errors
///
/// Returns the encoding that the bytes may have instead.
pub fn check(bytes: &[u8]) -> Result<&str, NotUtf8> {
    let line = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    if let Some(name) = utf16(bytes) {
        return Err(NotUtf8::Utf16(name));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(NotUtf8::Binary { line: line(at) });
    }
    str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let first = bytes.get(at).copied().unwrap_or_default();
        NotUtf8::Bytes {
            line: line(at),
            first,
        }
    })
}

/// Detects UTF-16 by its byte order mark, or by its first two characters: every file that memlb reads begins with two
/// ASCII characters.
fn utf16(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] => Some("UTF-16LE"),
        [0xfe, 0xff, ..] => Some("UTF-16BE"),
        [1..=u8::MAX, 0, 1..=u8::MAX, 0, ..] => Some("UTF-16LE"),
        [0, 1..=u8::MAX, 0, 1..=u8::MAX, ..] => Some("UTF-16BE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(text: &str, bytes: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn names_the_encoding_and_the_line() {
        assert_eq!(check("# caf\u{e9}\n".as_bytes()), Ok("# caf\u{e9}\n"));
        assert_eq!(check("\u{feff}a".as_bytes()), Ok("\u{feff}a"));
        for (bytes, found) in [
            (wide("[m]\n", u16::to_le_bytes), "UTF-16LE"),
            (wide("[m]\n", u16::to_be_bytes), "UTF-16BE"),
            (wide("\u{feff}[m]", u16::to_le_bytes), "UTF-16LE"),
            (wide("\u{feff}[m]", u16::to_be_bytes), "UTF-16BE"),
        ] {
            let problem = check(&bytes).unwrap_err();
            assert_eq!((problem, problem.line()), (NotUtf8::Utf16(found), None));
            assert!(
                problem
                    .remedy("f.toml")
                    .starts_with(&format!("iconv -f {found} "))
            );
        }
        let latin = check(b"[m]\n# caf\xe9\n").unwrap_err();
        assert_eq!(latin.line(), Some(2));
        assert!(latin.to_string().contains("0xe9"), "{latin}");
        assert!(latin.remedy("f").starts_with("iconv -f WINDOWS-1252 "));
        assert_eq!(check(b"[m]\n\0").unwrap_err(), NotUtf8::Binary { line: 2 });
        // A program has both: it is no text in another encoding.
        assert_eq!(
            check(b"\x7fELF\xd0\0\0").unwrap_err(),
            NotUtf8::Binary { line: 1 }
        );
    }

    #[test]
    fn reads_no_endless_file() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
    }
}
