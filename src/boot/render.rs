//! Templates and boot scripts. Pure.
