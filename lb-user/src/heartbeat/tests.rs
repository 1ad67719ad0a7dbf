//! Datagrams as they come, good and bad.
