//! The command line against a server over the network: TLS, tokens in files, and what is refused.

use crate::common::site::{Plan, Site, vm, write_secret};

use super::PROFILES;

async fn site(tls: &str) -> (Site, String, String) {
    let plan = Plan { boot: false, more: PROFILES.to_owned(), ..Plan::of(vec![vm("web", 1)]) };
    let mut site = Site::new(plan);
    site.reconfigure(|text| {
        text.replace("[admin]\n", &format!("[admin]\nlisten = \"127.0.0.1:0\"\n{tls}\n"))
    });
    site.serve().await;
    site.until_known(1).await;
    let address = super::bound(&site)["remote"]["address"].as_str().unwrap().to_owned();
    let token = site.run(&["token", "add", "ops", "--scope", "operate"]).await.ended(0).out.trim().to_owned();
    write_secret(&site.path("token"), &token);
    (site, address, token)
}

#[tokio::test]
async fn command_line_works_over_tls_with_a_certificate_that_signs_itself() {
    let (site, address, token) = site("tls = \"generated\"").await;
    let (server, file, ca) =
        (format!("https://{address}"), site.path("token"), site.path("state/admin-tls.crt"));
    let (file, ca) = (file.to_str().unwrap(), ca.to_str().unwrap());
    let remote = ["--server", &server, "--token-file", file];
    let with = |more: &[&'static str]| {
        let mut all: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        all.extend(remote.iter().map(|word| (*word).to_owned()));
        all
    };
    let run = async |words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        site.run(&words).await
    };
    run(with(&["jobs", "list"])).await.ended(1).says("is not trusted");
    let trusted = |more: &[&'static str]| [with(more), vec!["--ca-file".to_owned(), ca.to_owned()]].concat();
    run(trusted(&["jobs", "list"])).await.ended(0);
    let order = trusted(&["deploy", "web", "-p", "ext", "--reinstall", "--yes", "--json"]);
    let made = run(order).await.ended(0).json();
    assert_eq!(made["vms"][0]["outcome"], "created");
    let shown = run(trusted(&["jobs", "show", "web", "--json"])).await.ended(0).json();
    assert_eq!(shown["asked_by"], "token ops");
    run(trusted(&["token", "list"])).await.ended(2).says("this needs the scope admin");
    run(trusted(&["vm", "list"])).await.ended(2).says("not with --server");
    assert!(!site.log().contains(&token));
}

#[tokio::test]
async fn token_stays_home_where_it_would_be_seen() {
    let (site, address, _) = site("").await;
    let file = site.path("token");
    let file = file.to_str().unwrap();
    let local = format!("http://{address}");
    site.run(&["jobs", "list", "--server", &local, "--token-file", file]).await.ended(0);
    let far = ["jobs", "list", "--server", "http://192.0.2.1:8443", "--token-file", file];
    site.run(&far).await.ended(2).says("unencrypted");
    site.run(&["jobs", "list", "--server", &local]).await.ended(2).says("--token-file");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    site.run(&["jobs", "list", "--server", &local, "--token-file", file]).await.ended(2).says("chmod 600");
}

#[tokio::test]
async fn configuration_sends_no_tokens_over_the_network_unencrypted() {
    for (admin, says) in [
        ("listen = \"192.0.2.1:8443\"", "would send tokens over the network"),
        ("listen = \"[::]:8443\"", "would send tokens over the network"),
        ("tls = \"generated\"", "admin.listen"),
        ("listen = \"127.0.0.1:0\"\ntls_cert = \"a\"", "admin.tls_key"),
        ("listen = \"127.0.0.1:0\"\ntls_key = \"a\"", "admin.tls_cert"),
        (
            "listen = \"127.0.0.1:0\"\ntls = \"generated\"\ntls_cert = \"a\"\ntls_key = \"b\"",
            "remove one of the two",
        ),
        ("listen = \"127.0.0.1:0\"\ntls = \"maybe\"", "generated"),
        ("listen = \"127.0.0.1\"", "an address with a port"),
    ] {
        let site = Site::new(Plan { boot: false, ..Plan::of(Vec::new()) });
        site.reconfigure(|text| text.replace("[admin]\n", &format!("[admin]\n{admin}\n")));
        site.run(&["serve"]).await.ended(2).says(says);
    }
    let site = Site::new(Plan { boot: false, ..Plan::of(Vec::new()) });
    site.reconfigure(|text| {
        text.replace(
            "[admin]\n",
            "[admin]\nlisten = \"127.0.0.1:0\"\ntls_cert = \"none.crt\"\ntls_key = \"none.key\"\n",
        )
    });
    site.run(&["serve"]).await.ended(1).says("none.key");
}
