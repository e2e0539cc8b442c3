//! TFTP.

use std::{net::SocketAddrV4, path::Path};

use super::{BOOT_ROOT, Checker};
use crate::{
    config::{TftpConfig, TftpEngine, raw::RawTftp, read::At},
    tftp::transfer::Rollover,
};

/// What other BIOS network cards get by TFTP: an iPXE without drivers of its own.
const LOADER: &str = "undionly.kpxe";
/// Block sizes in bytes: what RFC 2348 allows, and what fits into an Ethernet frame behind IP, UDP and TFTP headers;
/// larger blocks fragment, and old ROMs cannot put fragments together.
const BLOCK_SIZES: (u16, u16) = (512, 65_464);
const BLOCK_SIZE: u16 = 1468;
/// Windows in blocks: more of them fit into no client's buffers.
const WINDOWS: (u16, u16) = (1, 64);
const WINDOW: u16 = 64;
/// Transfers of one address, and in all.
const TRANSFERS: (u16, u16) = (1, 4096);
const TRANSFERS_PER_CLIENT: u16 = 8;
const TRANSFERS_IN_ALL: u16 = 512;

impl Checker<'_> {
    pub(super) fn tftp(&mut self, tftp: &At<RawTftp>, state_dir: &Path) -> Option<TftpConfig> {
        let At { value: raw, spot } = tftp;
        let remedy = "write listen = [\"ADDRESS:69\"] with our addresses on the provisioning networks";
        let listen = self.required(raw.listen.as_ref(), spot, "listen", remedy);
        let engine = raw.engine.as_ref().map_or_else(TftpEngine::default, |engine| engine.value);
        let mut checked: Vec<SocketAddrV4> = Vec::new();
        for At { value, spot } in listen.iter().flat_map(|listen| &listen.value) {
            if value.ip().is_unspecified() && engine == TftpEngine::AsyncTftp {
                let message = "a TFTP reply has to leave from the address that was asked, and this engine knows only one";
                self.notes.wrong(spot, message, remedy);
            }
            if value.port() > 0 && checked.contains(value) {
                self.notes.wrong(spot, format!("{value} is in the list already"), "remove it");
            }
            checked.push(*value);
        }
        if let Some(listen) = listen.filter(|listen| listen.value.is_empty()) {
            self.notes.absent(&listen.spot, "is empty", remedy);
        }
        if let Some(loader) = &raw.loader {
            self.boot_file(loader, "tftp.root");
        }
        let config = TftpConfig {
            listen: checked,
            root: raw.root.as_ref().map_or_else(|| state_dir.join(BOOT_ROOT), |root| self.path(root)),
            loader: raw.loader.as_ref().map_or_else(|| LOADER.to_owned(), |loader| loader.value.clone()),
            device: raw.device.as_ref().map(|device| self.device(device)),
            engine,
            single_port: self.own_only(engine, raw.single_port.as_ref()).unwrap_or_default(),
            rollover: match self.within(&raw.rollover, 0, (0, 1)) {
                1 => Rollover::One,
                _ => Rollover::Zero, // a number
            },
            block_size: self.within(&raw.block_size, BLOCK_SIZE, BLOCK_SIZES),
            window: self.within(&raw.window, WINDOW, WINDOWS),
            clients: raw.clients.iter().flat_map(|all| &all.value).map(|network| network.value).collect(),
            transfers_per_client: self.within(&raw.transfers_per_client, TRANSFERS_PER_CLIENT, TRANSFERS),
            transfers: self.within(&raw.transfers, TRANSFERS_IN_ALL, TRANSFERS),
        };
        self.own_only(engine, raw.rollover.as_ref());
        self.own_only(engine, raw.clients.as_ref());
        if let Some(clients) = raw.clients.as_ref().filter(|clients| clients.value.is_empty()) {
            self.notes.absent(
                &clients.spot,
                "is empty, so that nobody would be answered",
                "name networks, or remove it",
            );
        }
        self.own_only(engine, raw.transfers_per_client.as_ref());
        self.own_only(engine, raw.transfers.as_ref());
        listen.map(|_| config)
    }

    /// Notes a key that the other engine cannot obey.
    fn own_only<T: Clone>(&mut self, engine: TftpEngine, key: Option<&At<T>>) -> Option<T> {
        let At { value, spot } = key?;
        if engine == TftpEngine::AsyncTftp {
            self.notes.wrong(
                spot,
                "is not known to the engine async-tftp",
                "remove it, or write engine = \"own\"",
            );
        }
        Some(value.clone())
    }
}
