//! The arguments of `make bench`.

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Less of everything.
    pub(crate) quick: bool,
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// The same, of transfers that lose packets.
    pub(crate) lossy_rounds: usize,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Tftp,
    Http,
    Dhcp,
    Decode,
}

impl Part {
    pub(crate) const ALL: [Self; 4] = [Self::Tftp, Self::Http, Self::Dhcp, Self::Decode];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Dhcp => "dhcp",
            Self::Decode => "decode",
        }
    }
}

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) extent: Extent,
    pub(crate) parts: Vec<Part>,
}

/// How it is called.
pub(crate) const USAGE: &str = "usage: make bench ARGS=\"[--quick] [--only tftp|http|dhcp|decode]…\"";

impl Options {
    /// Reads the arguments; `None`: they are not right. Cargo adds `--bench`.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut extent = Extent { quick: false, rounds: 5, lossy_rounds: 3 };
        let mut parts = Vec::new();
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => extent = Extent { quick: true, rounds: 2, lossy_rounds: 1 },
                "--only" => {
                    let name = arguments.next()?;
                    parts.push(Part::ALL.into_iter().find(|part| part.name() == name)?);
                }
                _ => return None,
            }
        }
        if parts.is_empty() {
            parts.extend(Part::ALL);
        }
        Some(Self { extent, parts })
    }
}
