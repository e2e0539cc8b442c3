//! Property tests of the filters.
