//! Map `own_links`: the link addresses of the interfaces with the XDP program.

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_common::maps::{OWN_LINKS, OwnLink, name, own_link};

use super::{
    attach::AttachMode, attachments::Attachment, interface::link_addresses, named_map::ArrayMap,
};

#[derive(Debug)]
pub struct OwnLinks {
    map: ArrayMap<OwnLink>,
    /// The entries that this manager has written; empty before the first time.
    written: Vec<OwnLink>,
}

impl OwnLinks {
    pub fn from_ebpf(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            map: ArrayMap::from_ebpf(ebpf, name::OWN_LINKS)?,
            written: Vec::new(),
        })
    }

    /// Writes the present link address of each interface with the XDP program. Of two interfaces with the same entry,
    /// the last one is checked.
    ///
    /// # Errors
    ///
    /// The kernel does not list the link addresses, or the map could not be written.
    pub fn update(&mut self, attachments: &[Attachment]) -> Result<()> {
        let with_xdp = attachments.iter().filter(|it| it.mode == AttachMode::Xdp);
        let mut with_xdp = with_xdp.peekable();
        if with_xdp.peek().is_none() {
            return Ok(());
        }
        let addresses = link_addresses().context("list the link addresses of this machine")?;
        let mut expected = vec![OwnLink::default(); OWN_LINKS as usize];
        for attachment in with_xdp {
            if let Some(interface) = attachment.index
                && let Some(address) = addresses.get(&attachment.interface)
            {
                expected[own_link(interface) as usize] = OwnLink {
                    interface,
                    reserved: 0,
                    address: (*address).into(),
                };
            }
        }
        if expected != self.written {
            for (entry, link) in (0..).zip(&expected) {
                self.map.set(entry, *link)?;
            }
            self.written = expected;
        }
        Ok(())
    }
}
