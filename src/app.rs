//! Wires, binds, spawns and waits.
