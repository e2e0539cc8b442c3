//! What several areas of the tests share.

pub(crate) mod ports;
pub(crate) mod reference;
pub(crate) mod site;
