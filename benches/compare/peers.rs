//! The peers, as their manuals start them, without what would hold them back: no limit of theirs is below what we ask.

use std::{fs, io, net::Ipv4Addr, path::PathBuf};

use crate::{process::Server, scene::Scene};

/// A TFTP server of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TftpPeer {
    /// dnsmasq; knows no windows (RFC 7440).
    Dnsmasq,
    /// H. Peter Anvin's; knows no windows.
    Hpa,
    /// atftpd.
    Atftpd,
}

impl TftpPeer {
    pub(crate) const ALL: [Self; 3] = [Self::Dnsmasq, Self::Hpa, Self::Atftpd];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::Hpa => "tftpd-hpa",
            Self::Atftpd => "atftpd",
        }
    }

    /// Starts it on port 69 of an address of loopback.
    pub(crate) fn start(self, scene: &Scene, at: Ipv4Addr) -> io::Result<Server> {
        let files = scene.files().display().to_string();
        let (program, arguments) = match self {
            Self::Dnsmasq => (
                PathBuf::from("dnsmasq"),
                vec![
                    "--no-daemon".to_owned(),
                    "--conf-file=/dev/null".to_owned(),
                    "--port=0".to_owned(),
                    "--user=root".to_owned(),
                    "--log-facility=/dev/null".to_owned(),
                    "--bind-interfaces".to_owned(),
                    format!("--listen-address={at}"),
                    "--enable-tftp".to_owned(),
                    "--tftp-max=1000".to_owned(),
                    format!("--tftp-root={files}"),
                ],
            ),
            Self::Hpa => (
                scene.peer("tftpd-hpa/usr/sbin/in.tftpd"),
                ["-L", "-u", "root", "-a", &format!("{at}:69"), "-s", &files].map(str::to_owned).to_vec(),
            ),
            Self::Atftpd => (
                scene.peer("atftpd/usr/sbin/atftpd"),
                vec![
                    "--daemon".to_owned(),
                    "--no-fork".to_owned(),
                    "--user=root.root".to_owned(),
                    format!("--bind-address={at}"),
                    "--port=69".to_owned(),
                    "--maxthread=1000".to_owned(),
                    "--verbose=3".to_owned(),
                    "--logfile=/dev/null".to_owned(),
                    files,
                ],
            ),
        };
        Server::start(self.name(), &program, &arguments, &scene.log(self.name()))
    }
}

/// Starts nginx as Debian configures it (workers, sendfile, tcp_nopush, an access log), on a port of loopback.
pub(crate) fn nginx(scene: &Scene, at: Ipv4Addr, port: u16) -> io::Result<Server> {
    let folder = scene.fresh("nginx")?;
    let files = scene.files();
    let shown = folder.display();
    let configuration = format!(
        "user root;\nworker_processes auto;\npid {shown}/pid;\nerror_log {shown}/error.log;\ndaemon off;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           sendfile on;\n  tcp_nopush on;\n  keepalive_requests 10000000;\n  access_log {shown}/access.log;\n\
           client_body_temp_path {shown}/1;\n  proxy_temp_path {shown}/2;\n  fastcgi_temp_path {shown}/3;\n\
           uwsgi_temp_path {shown}/4;\n  scgi_temp_path {shown}/5;\n\
           server {{ listen {at}:{port}; root {}; }}\n\
         }}\n",
        files.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration)?;
    let arguments =
        ["-c".to_owned(), file.display().to_string(), "-e".to_owned(), format!("{shown}/error.log")];
    Server::start("nginx", &scene.peer("nginx/usr/sbin/nginx"), &arguments, &scene.log("nginx"))
}
