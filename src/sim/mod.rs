//! The simulator: one pool model with XenAPI semantics, and the bodies that serve it.
//!
//! [`pool`] and [`faults`] are pure: seeded, no sockets, time is an argument. World (tests) drives them directly;
//! [`server`] puts the same pool behind real XML-RPC over HTTP.
//! Verdicts on a run are read from the pool's records and call log, never from the program under test.

pub mod faults;
pub mod lab;
pub mod pool;
pub mod server;
pub mod world;
