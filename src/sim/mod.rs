//! The simulator: a pool, its guests and the demo. Nothing that serves names it.

pub mod guest;
