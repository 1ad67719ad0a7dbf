//! Tables within a service: its workers, and the agents that may join.

use super::{Integer, Kind, list};
use crate::config::document::RawValue;
use crate::config::error::ProblemKind;
use crate::config::fields::{REWRITE, Validator};
use crate::config::keys::{AutoJoin, Worker};

/// The agents that may join; none where no network is named.
pub struct Joining;

impl Kind for Joining {
    type Value = Option<AutoJoin>;

    fn read<'a>(
        &self,
        given: RawValue<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Option<AutoJoin>> {
        if given.table().is_err() {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "it is networks and a port, in braces",
                "auto_join = { networks = [\"192.168.56.0/24\"], port = 8081 }",
                REWRITE,
            );
            return None;
        }
        let auto_join = validator.section::<AutoJoin>(path, Some(given));
        Some((!auto_join.networks.is_empty()).then_some(auto_join))
    }

    fn show(&self, value: &Option<AutoJoin>) -> String {
        let AutoJoin { networks, port } = value.clone().unwrap_or_default();
        format!("{{ networks = {}, port = {port} }}", list(&networks))
    }
}

/// A port, or 0 where none is named.
pub struct Port;

impl Kind for Port {
    type Value = u16;

    fn read<'a>(
        &self,
        given: RawValue<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<u16> {
        let number = Integer(1..=65_535).read(given, path, validator)?;
        u16::try_from(number).ok()
    }

    fn show(&self, value: &u16) -> String {
        value.to_string()
    }
}

/// The workers of a service.
pub struct Workers;

impl Kind for Workers {
    type Value = Vec<Worker>;

    fn read<'a>(
        &self,
        given: RawValue<'a>,
        path: &str,
        validator: &mut Validator<'a>,
    ) -> Option<Vec<Worker>> {
        let tables = given.list().ok();
        let tables = tables.filter(|it| it.iter().all(|it| it.table().is_ok()));
        let Some(tables) = tables else {
            validator.reject(
                path,
                ProblemKind::WrongType,
                "a worker is a name with an address",
                "workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]",
                REWRITE,
            );
            return None;
        };
        let worker =
            |(number, table)| validator.section::<Worker>(&format!("{path}.{number}"), Some(table));
        Some(tables.into_iter().enumerate().map(worker).collect())
    }

    fn show(&self, value: &Vec<Worker>) -> String {
        let worker =
            |it: &Worker| format!("{{ name = {:?}, address = \"{}\" }}", it.name, it.address);
        let workers: Vec<String> = value.iter().map(worker).collect();
        format!("[{}]", workers.join(", "))
    }
}
