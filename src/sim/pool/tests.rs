//! The model's semantics, one fact per row.
