//! Lines of an answer that comes for as long as a watch lasts: one is held at a time.

use std::{io, pin::Pin};

use futures::{AsyncBufRead, AsyncBufReadExt as _};

/// Longest line. An object has at most 3 MiB in a request to the API server; as JSON, a byte can take six.
const LONGEST: usize = 20 * 1024 * 1024;
/// A line buffer that grew beyond this is given back.
const KEPT: usize = 64 * 1024;

/// Lines, one at a time.
pub struct Lines {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl Lines {
    pub fn new(reader: impl AsyncBufRead + Send + 'static) -> Self {
        Self { reader: Box::pin(reader), line: Vec::new() }
    }

    /// The next line; `None`: there is no other that is whole.
    pub async fn next(&mut self) -> io::Result<Option<&str>> {
        if self.line.capacity() > KEPT {
            self.line = Vec::new();
        }
        self.line.clear();
        loop {
            let ready = self.reader.fill_buf().await?;
            if ready.is_empty() {
                return Ok(None);
            }
            let end = memchr::memchr(b'\n', ready);
            let part = ready.get(..end.unwrap_or(ready.len())).unwrap_or_default();
            if self.line.len() + part.len() > LONGEST {
                return Err(io::Error::other("a line is too long"));
            }
            self.line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume_unpin(used);
            if end.is_some() {
                // The text of the error would quote nothing, but a watch has no other bytes than JSON's.
                return str::from_utf8(&self.line).map(Some).map_err(|_| io::Error::other("a line is not text"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn only_whole_lines_come_out() {
        let mut lines = Lines::new(Cursor::new(b"one\n\ntwo\nhalf".to_vec()));
        for expected in [Some("one"), Some(""), Some("two"), None] {
            assert_eq!(lines.next().await.unwrap(), expected);
        }
        let mut lines = Lines::new(Cursor::new(vec![b'x'; LONGEST + 1]));
        assert!(lines.next().await.is_err());
    }
}
