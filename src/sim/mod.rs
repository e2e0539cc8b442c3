//! The simulator: one pool model with XenAPI semantics, the bodies that serve it, and the guests that come up in it.
//!
//! [`pool`], [`faults`] and the cores of [`guest`] are pure: seeded, no sockets, time is an argument. [`world`] drives
//! the pool without sockets; [`server`] puts it behind real XML-RPC over HTTP, and [`demo`] runs the whole cycle.
//! Verdicts on a run are read from the pool's records and call log, never from the program under test.

pub mod demo;
pub mod faults;
pub mod guest;
pub mod lab;
pub mod labxen;
pub mod pool;
pub mod server;
pub mod world;
