//! A packet and what it came to, as the flight recorder is told it. Pure.

use std::net::Ipv4Addr;

use super::{Action, Client, Ignored, Kind, Message, Reply, Request};
use crate::boot::sink::{Asked, Asker, Packet, Told};

/// The offset of the header's `file` field (RFC 2131 §2).
const FILE_AT: usize = 108;
/// The offset of `yiaddr`.
const ADDRESS_AT: usize = 16;

/// The packet, and what these actions answer it with.
pub(super) fn packet(request: &Request, actions: &[Action]) -> Packet {
    let mut packet = Packet {
        xid: request.xid,
        asked: asked(request.message),
        asker: asker(request.client),
        seconds: request.seconds,
        chose: request.server,
        relay: Some(request.giaddr).filter(|relay| !relay.is_unspecified()),
        told: Told::Silence(Ignored::Committing.label()),
        address: None,
    };
    for action in actions {
        match action {
            Action::Send(reply) => {
                (packet.told, packet.address) = (told(reply), address(reply).or(packet.address));
                break;
            }
            Action::Commit(lease) => (packet.told, packet.address) = (Told::Storing, Some(lease.address)),
            Action::Ignore(why) => packet.told = Told::Silence(why.label()),
            Action::Forget(_)
            | Action::Tell(_)
            | Action::Met(_)
            | Action::Hint(_)
            | Action::Fullness(_)
            | Action::Neighbour(_) => {}
        }
    }
    packet
}

const fn asked(message: Message) -> Asked {
    match message {
        Message::Discover => Asked::Discover,
        Message::Request => Asked::Request,
        Message::Decline => Asked::Decline,
        Message::Release => Asked::Release,
        Message::Inform => Asked::Inform,
    }
}

const fn asker(client: Client) -> Asker {
    match client {
        Client::Ipxe => Asker::Ipxe,
        Client::Rom => Asker::Rom,
        Client::HttpRom => Asker::HttpRom,
        Client::Plain => Asker::System,
    }
}

fn told(reply: &Reply) -> Told {
    let boots = reply.bytes.get(FILE_AT).is_some_and(|byte| *byte != 0);
    match reply.kind {
        Kind::Offer => Told::Offer { boots },
        Kind::Ack => Told::Ack { boots },
        Kind::Nak => Told::Nak,
    }
}

fn address(reply: &Reply) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = reply.bytes.get(ADDRESS_AT..ADDRESS_AT.saturating_add(4))?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes)).filter(|address| !address.is_unspecified())
}
