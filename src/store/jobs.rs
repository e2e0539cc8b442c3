//! The typed repository of jobs. (Provision's author fills this in.)
