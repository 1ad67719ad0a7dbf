//! A terminal page that is redrawn without flicker.

use std::io::{self, Write};

use anyhow::Result;
use terminal_size::{Height, terminal_size};

use crate::workspace::print_message;

/// The terminal's alternate screen, without cursor and line wrapping. Dropping it restores the main screen.
#[derive(Debug)]
pub struct Screen;

impl Screen {
    pub fn open() -> Result<Self> {
        write("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(Self)
    }

    /// Returns the number of lines of the terminal.
    pub fn height(&self) -> usize {
        terminal_size().map_or(24, |(_, Height(height))| height.into())
    }

    /// Draws `lines`, as far as they fit.
    pub fn draw(&self, lines: &[String]) -> Result<()> {
        let mut page = String::from("\x1b[H");
        for (index, line) in lines.iter().take(self.height()).enumerate() {
            if index > 0 {
                page.push_str("\r\n");
            }
            page.push_str(line);
            // Clears the rest of the former line.
            page.push_str("\x1b[K");
        }
        page.push_str("\x1b[J");
        write(&page)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Err(error) = write("\x1b[?7h\x1b[?25h\x1b[?1049l") {
            print_message(format!("{error:#}"));
        }
    }
}

fn write(text: &str) -> Result<()> {
    let mut terminal = io::stdout().lock();
    terminal.write_all(text.as_bytes())?;
    terminal.flush()?;
    Ok(())
}
