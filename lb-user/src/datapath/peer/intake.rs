//! Runs program `memlb_intake`, which writes peers' connections to the flow tables.

use std::{
    io,
    ops::AddAssign,
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{ProgramFd, SchedClassifier},
};
use lb_common::maps::{Admission, FlowRecord, INTAKE_RECORDS, IntakeHeader};

use crate::datapath::{
    attach::program,
    bpf_call::{BPF_PROG_TEST_RUN, bpf},
};

const PROGRAM: &str = "memlb_intake";

/// Writes connections that peers have reported.
#[derive(Debug)]
pub struct Intake {
    program: ProgramFd,
    frame: Vec<u8>,
}

/// The number of records with each [`Admission`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeOutcome([u64; Admission::ALL.len()]);

impl IntakeOutcome {
    pub fn count(&self, outcome: Admission) -> u64 {
        self.0[outcome as usize]
    }

    /// Every outcome with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Admission, u64)> {
        Admission::ALL.into_iter().zip(self.0)
    }
}

impl AddAssign for IntakeOutcome {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

/// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    processor: u32,
    batch_size: u32,
    reserved: u32,
}

/// Held during a run of the program, because two runs on one processor would share its scratch space.
static ONE_RUN: Mutex<()> = Mutex::new(());

impl Intake {
    /// Loads the program, or opens it again.
    ///
    /// # Errors
    ///
    /// The kernel rejects the program.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let program: &mut SchedClassifier = program(ebpf, PROGRAM)?;
        if program.fd().is_err() {
            let loaded = program.load();
            loaded.with_context(|| format!("load the program {PROGRAM}"))?;
        }
        Ok(Self {
            program: program.fd()?.try_clone()?,
            frame: Vec::new(),
        })
    }

    /// Writes records whose backends, interfaces, link addresses and times are this manager's.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn admit(&mut self, records: &[FlowRecord]) -> Result<IntakeOutcome> {
        let mut sum = IntakeOutcome::default();
        for records in records.chunks(INTAKE_RECORDS) {
            sum += self
                .run(records)
                .with_context(|| format!("run the program {PROGRAM}"))?;
        }
        Ok(sum)
    }

    fn run(&mut self, records: &[FlowRecord]) -> io::Result<IntakeOutcome> {
        let _one_run = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
        self.frame.clear();
        self.frame.extend(bytes_of(&IntakeHeader::NEW));
        for record in records {
            self.frame.extend(bytes_of(record));
        }
        let mut header = IntakeHeader::NEW;
        let mut run = TestRun {
            program: self.program.as_fd().as_raw_fd().cast_unsigned(),
            size_in: self.frame.len() as u32,
            size_out: size_of::<IntakeHeader>() as u32,
            data_in: self.frame.as_ptr().expose_provenance() as u64,
            data_out: (&raw mut header).expose_provenance() as u64,
            repeat: records.len() as u32,
            ..TestRun::default()
        };
        loop {
            match bpf(BPF_PROG_TEST_RUN, &mut run) {
                Ok(_) => break,
                // Admitting a record twice changes nothing.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    run.size_out = size_of::<IntakeHeader>() as u32;
                }
                // The output has room for the header only.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(IntakeOutcome(
            header.outcomes.map(|it| u16::from_ne_bytes(it).into()),
        ))
    }
}

/// The bytes of a value without padding.
fn bytes_of<T: aya::Pod>(value: &T) -> &[u8] {
    // SAFETY: the slice has the size of the value, which has no padding (`Pod`).
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}
