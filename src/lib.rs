//! bootflip PXE-installs paravirtualized guests on XenServer and XCP-ng, unattended.
//!
//! Layers point one way: `cli` → `app` → IO shells (`dhcp::server`, `tftp::server`, `http::server`,
//! `provision::executor`, `store::{sqlite, memory}`, `xen::client`) → sync cores (`boot`, `dhcp`, `tftp`,
//! `http`, `provision`, `xen`, `access`) → `machine`, `config`, `clock`. `sim` stands beside them and is named
//! only by `cli` and tests. `docs/architecture.md` has the picture; `tests/it/tidy.rs` checks the walls.

pub mod access;
pub mod app;
pub mod boot;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dhcp;
pub mod http;
pub mod machine;
pub mod metrics;
pub mod provision;
pub mod recorder;
pub mod secret;
pub mod sim;
pub mod store;
pub mod syslog;
pub mod tftp;
pub mod xen;
