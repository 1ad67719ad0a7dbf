//! The rules of `auto_join`: who may become a worker by starting an agent.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::reader::{Located, Place, Reader};
use crate::config::AutoJoin;
use crate::config::error::ProblemKind;
use crate::config::file::{AutoJoinTable, Given};
use crate::config::values::family;
use crate::heartbeat::Authentication;

const EXAMPLE: &str = "{ networks = [\"192.168.56.0/24\"], port = 8081 }";

/// Reads who may join the service at that address; nothing if nobody may.
pub(super) fn check(
    reader: &mut Reader<'_>,
    given: Given<AutoJoinTable>,
    service: Option<&Located>,
    authentication: Authentication,
) -> Option<AutoJoin> {
    let table = given?;
    let place = reader.at("service.auto_join", &table);
    let AutoJoinTable { networks, port } = table.into_inner();
    let networks = networks.map(Spanned::into_inner).unwrap_or_default();
    if networks.is_empty() {
        return None;
    }
    if authentication == Authentication::Off {
        reader.refuse(
            &place,
            ProblemKind::AutoJoinUnauthenticated,
            "agents may join by themselves, but heartbeats.authentication is \"off\"",
            "\"enforce\" or \"permissive\": only agents with a key that the manager knows join",
            "make keys with `memlb keygen` and set heartbeats.authentication = \"enforce\"",
        );
    }
    let port = port_of(reader, &place, port);
    let networks = networks
        .into_iter()
        .filter_map(|text| network(reader, &text, service));
    Some(AutoJoin {
        networks: networks.collect(),
        port: port?,
    })
}

fn port_of(reader: &mut Reader<'_>, whole: &Place, given: Given<i64>) -> Option<u16> {
    let (place, number) = match given {
        Some(given) => (
            reader.at("service.auto_join.port", &given),
            Some(given.into_inner()),
        ),
        None => (whole.clone(), None),
    };
    let port = number.and_then(|number| u16::try_from(number).ok());
    if let Some(port) = port.filter(|port| *port > 0) {
        return Some(port);
    }
    let (kind, what) = match number {
        Some(number) => (ProblemKind::OutOfRange, format!("{number} is no port")),
        None => (ProblemKind::Missing, "the port is missing".to_owned()),
    };
    reader.refuse(
        &place,
        kind,
        what,
        "the port at which every joining worker serves, from 1 to 65535",
        format!("write for instance auto_join = {EXAMPLE}"),
    );
    None
}

fn network(
    reader: &mut Reader<'_>,
    text: &Spanned<String>,
    service: Option<&Located>,
) -> Option<IpNet> {
    let place = reader.at("service.auto_join.networks", text);
    let text = text.get_ref().trim();
    let (what, remedy) = match text.parse::<IpNet>() {
        Ok(network) if network == network.trunc() => {
            return of_family(reader, &place, network, service);
        }
        Ok(network) => (
            format!("{text:?} is an address in a network, not a network"),
            format!("write \"{}\"", network.trunc()),
        ),
        Err(_) => (
            format!("{text:?} is not a network"),
            match text.parse::<IpAddr>() {
                Ok(address) => format!("write \"{}\" for this one address", IpNet::from(address)),
                Err(_) => format!("write for instance {EXAMPLE}"),
            },
        ),
    };
    reader.refuse(
        &place,
        ProblemKind::BadNetwork,
        what,
        "a network with its length, as \"192.168.56.0/24\" or \"2001:db8::/64\"",
        remedy,
    );
    None
}

/// Who joins serves under the address it is heard from, which must be of the service's family.
fn of_family(
    reader: &mut Reader<'_>,
    place: &Place,
    network: IpNet,
    service: Option<&Located>,
) -> Option<IpNet> {
    let (is, needed) = match service {
        Some(service) => (family(network.addr()), family(service.address.ip())),
        None => return Some(network),
    };
    if is == needed {
        return Some(network);
    }
    reader.refuse(
        place,
        ProblemKind::FamiliesMixed,
        format!("{network} is an {is} network, and the service's address an {needed} one"),
        format!("{needed} networks"),
        format!("name {needed} networks here, and this one at a service with an {is} address"),
    );
    None
}
