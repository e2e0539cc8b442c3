//! The demo: the whole cycle on loopback, with real packets and the shipped binary.
//!
//! It starts a simulated pool, one guest for each domain that comes up there, `bootflip serve` and `bootflip deploy`
//! as children, does the deeds that its plan holds (a person's hand, SIGKILL to the server), and judges the end by
//! the pool model's own records. `options`, `plan`, `layout`, `verdict` and `document` are pure; `run`, `scene`,
//! `children`, `guests`, `jobs`, `ports` and `progress` touch the world.

pub mod children;
pub mod document;
pub mod guests;
pub mod jobs;
pub mod layout;
pub mod options;
pub mod plan;
pub mod ports;
pub mod progress;
pub mod run;
pub mod scene;
pub mod verdict;

pub use options::{Break, DemoOptions, MAX_VMS};
pub use run::{DemoError, run};
