//! The one integration binary. Each area is a module; shared tools are in `common`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]
#![allow(clippy::wildcard_enum_match_arm, clippy::needless_range_loop)]

mod boot;
mod budget;
mod cli;
mod clients;
mod clients_qemu;
mod common;
mod config;
mod create;
mod demo;
mod dhcp;
mod evidence;
mod guests;
mod http;
mod idle;
mod kill;
mod lab;
mod loaders;
mod luck;
mod orders;
mod planning;
mod quirks;
mod recovery;
mod refusals;
mod releases_sim;
mod safety;
mod simcontrol;
mod simpool;
mod simserver;
mod stale;
mod store;
mod tftp;
mod tidy;
mod walks;
mod xen;
