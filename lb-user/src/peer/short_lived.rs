//! Removes connections that begin and end between two reads: no peer needs them.

use foldhash::HashMap;
use lb_common::maps::{FlowRecord, record_kind};

/// Client, service and protocol.
type FiveTuple = ([u8; 16], [u8; 2], [u8; 16], [u8; 2], u8);

/// Removes short-lived connections from the records of one read. It is kept between reads only to reuse its memory.
#[derive(Debug, Default)]
pub struct ShortLived {
    /// Indices of the records of connections that have begun.
    begun: HashMap<FiveTuple, usize>,
}

impl ShortLived {
    pub fn remove_from(&mut self, records: &mut Vec<FlowRecord>) {
        self.begun.clear();
        let mut over = 0;
        for index in 0..records.len() {
            let record = &records[index];
            let (kind, created_ticks) = (record.kind, record.created_ticks);
            let tuple = tuple(record);
            if kind == record_kind::OPENED {
                self.begun.insert(tuple, index);
                continue;
            }
            // If a peer also carries the connection, it needs every record of it.
            let begun = self.begun.remove(&tuple);
            if kind == record_kind::ENDED
                && let Some(begun) = begun
                && records[begun].created_ticks == created_ticks
            {
                records[begun].kind = record_kind::NONE;
                records[index].kind = record_kind::NONE;
                over += 1;
            }
        }
        if over > 0 {
            records.retain(|it| it.kind != record_kind::NONE);
        }
    }
}

fn tuple(record: &FlowRecord) -> FiveTuple {
    (
        record.client,
        record.client_port,
        record.service_address,
        record.service_port,
        record.protocol,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_over_already_is_not_reported() {
        let record = |kind, client: u8, created_ticks| FlowRecord {
            kind,
            client: [client; 16],
            created_ticks,
            ..FlowRecord::default()
        };
        use record_kind::{ENDED, OPENED, PRESENT};
        let mut records = vec![
            record(OPENED, 1, 5),
            // Began before.
            record(ENDED, 2, 1),
            record(OPENED, 3, 5),
            record(PRESENT, 3, 5),
            record(ENDED, 1, 5),
            record(OPENED, 1, 6),
            record(ENDED, 3, 5),
            record(OPENED, 4, 6),
            // Of an earlier connection of the tuple.
            record(ENDED, 4, 2),
        ];
        let rest = [1, 2, 3, 5, 6, 7, 8].map(|index| records[index]);
        let mut short_lived = ShortLived::default();
        short_lived.remove_from(&mut records);
        assert_eq!(records, rest);
        short_lived.remove_from(&mut records);
        assert_eq!(records, rest);
    }
}
