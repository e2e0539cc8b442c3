//! The values that labels have: closed lists, one for each kind of event. No MAC, address, path or name of a VM is ever
//! one, so that the number of series is bounded by the program and the configured pools.

use crate::{
    boot::sink::{Protocol, ReportAnswer, Sign, Unavailable},
    provision::job::State,
    store::StoreError,
    xen::CallError,
};

/// Every sign.
pub(super) const SIGNS: [Sign; 7] =
    [Sign::Dhcp, Sign::NetbootRefused, Sign::Loader, Sign::Script, Sign::Kernel, Sign::Initrd, Sign::Lease];

pub(super) const fn sign(sign: Sign) -> &'static str {
    match sign {
        Sign::Dhcp => "dhcp",
        Sign::NetbootRefused => "netboot_refused",
        Sign::Loader => "loader",
        Sign::Script => "script",
        Sign::Kernel => "kernel",
        Sign::Initrd => "initrd",
        Sign::Lease => "lease",
    }
}

pub(super) const PROTOCOLS: [Protocol; 2] = [Protocol::Http, Protocol::Tftp];

pub(super) const REPORT_ANSWERS: [ReportAnswer; 6] = [
    ReportAnswer::Accepted,
    ReportAnswer::Already,
    ReportAnswer::Closed,
    ReportAnswer::Unknown,
    ReportAnswer::WrongMethod,
    ReportAnswer::Later,
];

pub(super) const fn report(answer: ReportAnswer) -> &'static str {
    match answer {
        ReportAnswer::Accepted => "accepted",
        ReportAnswer::Already => "already",
        ReportAnswer::Closed => "closed",
        ReportAnswer::Unknown => "unknown",
        ReportAnswer::WrongMethod => "wrong_method",
        ReportAnswer::Later => "later",
    }
}

pub(super) const ANSWER_FILES: [&str; 3] = ["given", "refused", "unavailable"];

pub(super) const fn answer_file(given: &Result<bool, Unavailable>) -> &'static str {
    match given {
        Ok(true) => "given",
        Ok(false) => "refused",
        Err(Unavailable) => "unavailable",
    }
}

pub(super) const fn state(state: State) -> &'static str {
    match state {
        State::Queued => "queued",
        State::Preparing => "preparing",
        State::Flipping => "flipping",
        State::Booting => "booting",
        State::Installing => "installing",
        State::Restoring => "restoring",
        State::Starting => "starting",
        State::Verifying => "verifying",
        State::Undoing => "undoing",
        State::NeedsOperator => "needs_operator",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

pub(super) fn call<T>(answer: &Result<T, CallError>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(CallError::Failed { .. }) => "failed",
        Err(CallError::Unknown { .. }) => "unknown",
        Err(CallError::Unreachable { .. }) => "unreachable",
        Err(CallError::Untrusted { .. }) => "untrusted",
        Err(CallError::LoginRefused { .. }) => "login_refused",
        Err(CallError::Protocol { .. }) => "protocol",
    }
}

pub(super) const COMMITS: [&str; 5] = ["ok", "conflict", "unavailable", "too_large", "corrupt"];

pub(super) const fn commit<T>(answer: &Result<T, StoreError>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(StoreError::Conflict { .. }) => "conflict",
        Err(StoreError::Unavailable { .. }) => "unavailable",
        Err(StoreError::TooLarge { .. }) => "too_large",
        Err(StoreError::Corrupt { .. }) => "corrupt",
    }
}
