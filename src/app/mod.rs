//! Wires, binds, spawns and waits: the server.

pub mod key;
pub mod machines;
pub mod selection;
pub mod views;
