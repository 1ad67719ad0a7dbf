//! The headers of the measured packets.

/// Protocol number of UDP (IANA).
pub const UDP: u8 = 17;
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// The link address of the interface that receives clients' packets of new connections.
pub const LINK: [u8; 6] = [2, 0, 0, 0, 0, 101];
pub const CLIENT: [u8; 4] = [192, 168, 56, 10];
pub const MANAGER: [u8; 4] = [192, 168, 56, 101];
pub const WORKER: [u8; 4] = [192, 168, 56, 103];
pub const SERVICE_PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8081;
pub const NAT_PORT: u16 = 20_000;
pub const FIRST_PORT: u16 = 32_768;

/// The fields of Ethernet, IPv4 and TCP in which the packets differ.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    /// The link address of the destination; the loopback interface has zeros.
    pub link: [u8; 6],
    pub protocol: u8,
    pub source: [u8; 4],
    pub destination: [u8; 4],
    /// The wrapper increments this.
    pub source_port: u16,
    pub destination_port: u16,
    pub flags: u8,
}

pub const REQUEST: Headers = Headers {
    link: [0; 6],
    protocol: 6,
    source: CLIENT,
    destination: MANAGER,
    source_port: FIRST_PORT,
    destination_port: SERVICE_PORT,
    flags: ACK,
};

/// As if every flow had a port of its own at the worker.
pub const REPLY: Headers = Headers {
    link: [0; 6],
    protocol: 6,
    source: WORKER,
    destination: MANAGER,
    source_port: FIRST_PORT,
    destination_port: NAT_PORT,
    flags: ACK,
};

impl Headers {
    /// Returns 54 bytes.
    pub fn bytes(&self) -> [u8; 54] {
        const SOURCE: usize = 6;
        const ETHERTYPE: usize = 12;
        const IP: usize = 14;
        const TCP: usize = 34;
        let mut bytes = [0; 54];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, &self.link);
        put(SOURCE, &[2, 0, 0, 0, 0, 3]);
        put(ETHERTYPE, &[0x08, 0x00]);
        put(IP, &[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, self.protocol]);
        put(IP + 12, &self.source);
        put(IP + 16, &self.destination);
        put(TCP, &self.source_port.to_be_bytes());
        put(TCP + 2, &self.destination_port.to_be_bytes());
        if self.protocol == UDP {
            // Its length is where TCP has the sequence number.
            put(TCP + 4, &[0, 20]);
        }
        put(TCP + 12, &[0x50, self.flags]);
        bytes
    }
}
