//! The one integration binary. Each area is a module; shared tools are in `common`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

mod boot;
mod common;
mod config;
mod guests;
mod lab;
mod recovery;
mod simpool;
mod store;
mod xen;
mod dhcp;
mod http;
mod tftp;
