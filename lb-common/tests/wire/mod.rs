//! Frames made from nothing, with full checksums (RFC 1071): the oracle, independent of the code under
//! test.

use lb_common::{
    address::{V4, V6},
    headers::ETHERNET_LEN,
    maps::FlowKey,
    packet::{Extent, FrameBytes, Header, IpAddress, Located, Segment, Transport},
    verdict::Verdict,
};

const UDP: u8 = 17;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire(pub Vec<u8>);

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends<A> {
    pub source: A,
    pub destination: A,
    pub source_port: u16,
    pub destination_port: u16,
}

impl<A: IpAddress> Ends<A> {
    pub fn key(self, protocol: u8) -> FlowKey<A> {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port.to_be_bytes(),
            destination_port: self.destination_port.to_be_bytes(),
            protocol: protocol.into(),
        }
    }

    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A family of addresses, as frames are made with it.
pub trait Family: IpAddress {
    /// Ethernet and IP headers before a payload.
    fn headers(source: Self, destination: Self, protocol: u8, hops: u8, payload: usize) -> Vec<u8>;
    /// What the checksum of a payload covers beside it.
    fn pseudo_header(source: Self, destination: Self, protocol: u8, payload: usize) -> Vec<u8>;
    /// An ICMP error's protocol, type and code, and whether its checksum covers a pseudo header.
    const ERROR: (u8, [u8; 2], bool);
}

impl Family for V4 {
    fn headers(source: V4, destination: V4, protocol: u8, hops: u8, payload: usize) -> Vec<u8> {
        let length = u16::try_from(20 + payload).unwrap().to_be_bytes();
        let mut ip = vec![
            0x45, 0, length[0], length[1], 0x1d, 0x0f, 0x40, 0, hops, protocol, 0, 0,
        ];
        ip.extend(source);
        ip.extend(destination);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        [ethernet([0x08, 0x00]), ip].concat()
    }

    fn pseudo_header(source: V4, destination: V4, protocol: u8, payload: usize) -> Vec<u8> {
        let mut covered = [source, destination].concat();
        covered.extend([0, protocol]);
        covered.extend(u16::try_from(payload).unwrap().to_be_bytes());
        covered
    }

    const ERROR: (u8, [u8; 2], bool) = (1, [3, 4], false);
}

impl Family for V6 {
    fn headers(source: V6, destination: V6, protocol: u8, hops: u8, payload: usize) -> Vec<u8> {
        let length = u16::try_from(payload).unwrap().to_be_bytes();
        let ip = vec![0x60, 0, 0, 0, length[0], length[1], protocol, hops];
        [ethernet([0x86, 0xdd]), ip, [source, destination].concat()].concat()
    }

    fn pseudo_header(source: V6, destination: V6, protocol: u8, payload: usize) -> Vec<u8> {
        let mut covered = [source, destination].concat();
        covered.extend(u32::try_from(payload).unwrap().to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
        covered
    }

    const ERROR: (u8, [u8; 2], bool) = (58, [2, 0], true);
}

/// A SYN with these ends, or a datagram.
pub fn frame<A: Family>(ends: Ends<A>, protocol: u8, hops: u8, payload: &[u8]) -> Wire {
    let payload = transport(ends, protocol, payload);
    let headers = A::headers(ends.source, ends.destination, protocol, hops, payload.len());
    Wire([headers, payload].concat())
}

/// A router's message that a packet with these ends was too big.
pub fn error<A: Family>(about: Ends<A>, protocol: u8, router: A) -> Wire {
    let quoted = frame(about, protocol, 64, &[]).0;
    let (icmp, kind, has_pseudo_header) = A::ERROR;
    let mut message = [kind[0], kind[1], 0, 0, 0, 0, 0x05, 0x00].to_vec();
    // Of the transport header only as much as every message quotes: the checksum of TCP is not kept up.
    let ip = ETHERNET_LEN + size_of::<A::Header>();
    message.extend(&quoted[ETHERNET_LEN..ip + 8]);
    let mut covered = Vec::new();
    if has_pseudo_header {
        covered = A::pseudo_header(router, about.source, icmp, message.len());
    }
    covered.extend(&message);
    let sum = checksum(&covered);
    message[2..4].copy_from_slice(&sum);
    let headers = A::headers(router, about.source, icmp, 64, message.len());
    Wire([headers, message].concat())
}

impl Wire {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn cut(&self, length: usize) -> Self {
        Self(self.0[..length].to_vec())
    }

    /// An IPv6 frame with extension headers of these kinds and lengths before its payload.
    pub fn extended(&self, extensions: &[(u8, usize)]) -> Self {
        let mut next = self.0[20];
        let mut headers = Vec::new();
        for (kind, length) in extensions.iter().rev() {
            let mut header = vec![0; *length];
            header[0] = next;
            header[1] = u8::try_from(length / 8 - 1).unwrap();
            headers = [header, headers].concat();
            next = *kind;
        }
        let mut wire = Self([&self.0[..54], &headers, &self.0[54..]].concat());
        let payload = u16::try_from(wire.len() - 54).unwrap();
        wire.write(18, &payload.to_be_bytes());
        wire.write(20, &[next]);
        wire
    }

    /// Takes one hop off the time to live.
    pub fn hop<A: Family>(&mut self) {
        if size_of::<A>() == 4 {
            self.0[22] -= 1;
            self.0[24..26].copy_from_slice(&[0, 0]);
            let sum = checksum(&self.0[14..34]);
            self.0[24..26].copy_from_slice(&sum);
        } else {
            self.0[21] -= 1;
        }
    }

    pub fn extent(&self) -> Extent {
        Extent {
            bytes: self.len().try_into().unwrap(),
            coalesced: false,
        }
    }

    pub fn bytes(&mut self) -> Slice {
        // SAFETY: the tests keep the frame while they use views, and use no two views of the same bytes at a time.
        unsafe { Slice::new(self.0.as_mut_ptr(), self.len()) }
    }
}

/// A frame's bytes, for views.
#[derive(Clone, Copy)]
pub struct Slice {
    start: *mut u8,
    length: usize,
}

impl Slice {
    /// # Safety
    ///
    /// The bytes outlive all views, and no two views of the same bytes are in use at a time.
    unsafe fn new(start: *mut u8, length: usize) -> Self {
        Self { start, length }
    }
}

impl<'a> FrameBytes<'a> for Slice {
    fn at<T: Header>(self, offset: usize) -> Option<&'a mut T> {
        // SAFETY: within the frame, of alignment 1, and any bytes are a header; `new` requires the rest.
        (offset + size_of::<T>() <= self.length)
            .then(|| unsafe { &mut *self.start.add(offset).cast() })
    }
}

pub fn ip<'a, A: IpAddress>(bytes: Slice) -> Result<&'a A::Header, Verdict> {
    bytes
        .at::<A::Header>(ETHERNET_LEN)
        .map(|header| &*header)
        .ok_or(Verdict::Truncated)
}

pub fn segment<'a, A: IpAddress>(bytes: Slice, located: Located) -> Option<Segment<'a, A>> {
    Some(Segment {
        ethernet: bytes.at(0)?,
        ip: bytes.at(ETHERNET_LEN)?,
        transport: if located.protocol == UDP {
            Transport::Udp(bytes.at(located.offset)?)
        } else {
            Transport::Tcp(bytes.at(located.offset)?)
        },
    })
}

fn ethernet(ether_type: [u8; 2]) -> Vec<u8> {
    [
        [2, 0, 0, 0, 0, 0x65, 2, 0, 0, 0, 0, 1].as_slice(),
        &ether_type,
    ]
    .concat()
}

fn transport<A: Family>(ends: Ends<A>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(ends.source_port.to_be_bytes());
    bytes.extend(ends.destination_port.to_be_bytes());
    let checksum_at = if protocol == UDP {
        bytes.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        bytes.extend([0, 0]);
        6
    } else {
        bytes.extend([
            0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 7, 0x50, 2, 0x72, 0x10, 0, 0, 0, 0,
        ]);
        16
    };
    bytes.extend(payload);
    let mut covered = A::pseudo_header(ends.source, ends.destination, protocol, bytes.len());
    covered.extend(&bytes);
    let mut sum = checksum(&covered);
    if protocol == UDP && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    bytes
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
