//! What must hold for any bytes: the frame cutter and the scanner against slow, plain references,
//! PROXY headers against themselves.
//!
//! Included by the fuzz targets and by `tests/frames.rs`, so that both ask the same. It must not
//! share code with what it checks: the references build values with serde_json and split strings.

pub(crate) mod cli;
pub(crate) mod frame;
pub(crate) mod json;
pub(crate) mod proxy_header;
pub(crate) mod scan;
