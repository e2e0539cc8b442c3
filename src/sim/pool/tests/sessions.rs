//! Logins, sessions and their limits, event.next.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Logs in; answers the session.
fn login(pool: &mut Pool, now: Timestamp, words: &[&str]) -> Result<Value, Failure> {
    let params: Vec<Value> = words.iter().map(|word| Value::string(*word)).collect();
    pool.call(now, "session.login_with_password", &params)
}

fn ask(pool: &mut Pool, now: Timestamp, session: &Value, method: &str, rest: &[Value]) -> String {
    let params: Vec<Value> = std::iter::once(session.clone()).chain(rest.iter().cloned()).collect();
    match pool.call(now, method, &params) {
        Ok(value) => value.as_str().map_or_else(|| format!("{value:?}"), str::to_owned),
        Err(failure) => failure.code,
    }
}

#[test]
fn an_originator_is_known_since_6_2() {
    for release in Release::ALL {
        let mut pool = Pool::new(1, release);
        for (words, needs) in [
            (&["root", DEFAULT_PASSWORD][..], "5.6"),
            (&["root", DEFAULT_PASSWORD, "1.0"], "5.6"),
            (&["root", DEFAULT_PASSWORD, "1.0", "bootflip"], "6.2"),
        ] {
            let answer = login(&mut pool, START, words);
            let fits = release.api >= Release::named(needs).unwrap().api;
            let expected = if fits { Ok(()) } else { Err("MESSAGE_PARAMETER_COUNT_MISMATCH".to_owned()) };
            assert_eq!(
                answer.map(drop).map_err(|failure| failure.code),
                expected,
                "{} {words:?}",
                release.name
            );
        }
        assert_eq!(
            login(&mut pool, START, &["root", "no"]).unwrap_err().code,
            "SESSION_AUTHENTICATION_FAILED"
        );
    }
}

#[test]
fn the_longest_idle_session_goes_when_there_are_too_many() {
    let rows = [
        ("5.6", &["root", DEFAULT_PASSWORD][..], 200),
        ("5.6", &["ops", "secret"], 200),
        ("6.0", &["root", DEFAULT_PASSWORD], 400),
        ("6.2", &["root", DEFAULT_PASSWORD, "1.0", "bootflip"], 400),
        ("6.5", &["root", DEFAULT_PASSWORD], 400),
        ("6.5", &["root", DEFAULT_PASSWORD, "1.0", "bootflip"], 500),
        ("8.2", &["ops", "secret", "1.0", "bootflip"], 500),
    ];
    for (release, words, limit) in rows {
        let mut pool = Pool::new(1, Release::named(release).unwrap());
        pool.add_account("ops", Secret::new("secret".to_owned()), Role::ReadOnly);
        let first = login(&mut pool, START, words).unwrap();
        let second = login(&mut pool, START, words).unwrap();
        for _ in 2..limit {
            login(&mut pool, START, words).unwrap();
        }
        let later = START + Duration::from_secs(60);
        assert_eq!(ask(&mut pool, later, &first, "pool.get_all", &[]).split('(').next(), Some("Array"));
        assert_eq!(pool.session_count(), limit, "{release} {words:?}");
        login(&mut pool, later, words).unwrap();
        assert_eq!(pool.session_count(), limit, "{release} {words:?}");
        assert_eq!(ask(&mut pool, later, &second, "pool.get_all", &[]), "SESSION_INVALID");
        assert_ne!(
            ask(&mut pool, later, &first, "pool.get_all", &[]),
            "SESSION_INVALID",
            "it was used since"
        );
    }
}

#[test]
fn other_originators_do_not_push_a_session_out() {
    let mut pool = Pool::new(1, Release::V8_2);
    let mine = login(&mut pool, START, &["root", DEFAULT_PASSWORD, "1.0", "bootflip"]).unwrap();
    for _ in 0..600 {
        login(&mut pool, START, &["root", DEFAULT_PASSWORD]).unwrap();
    }
    assert_eq!(pool.session_count(), 401);
    assert_eq!(
        ask(&mut pool, START, &mine, "session.get_originator", std::slice::from_ref(&mine)),
        "bootflip"
    );
}

#[test]
fn a_session_that_nobody_uses_ends_after_a_day() {
    let mut pool = Pool::new(1, Release::V8_2);
    let session = login(&mut pool, START, &["root", DEFAULT_PASSWORD]).unwrap();
    let used = START + DAY;
    assert_ne!(ask(&mut pool, used, &session, "pool.get_all", &[]), "SESSION_INVALID");
    assert_ne!(ask(&mut pool, used + DAY, &session, "pool.get_all", &[]), "SESSION_INVALID");
    let late = used + DAY * 2 + Duration::from_secs(1);
    assert_eq!(ask(&mut pool, late, &session, "pool.get_all", &[]), "SESSION_INVALID");
    assert!(!pool.has_session(session.as_str().unwrap()));
}

#[test]
fn a_session_tells_of_itself() {
    let mut pool = Pool::new(1, Release::V8_2);
    pool.add_account("ops", Secret::new("secret".to_owned()), Role::VmOperator);
    let session = login(&mut pool, START, &["ops", "secret"]).unwrap();
    let mut own = |message: &str| ask(&mut pool, START, &session, message, std::slice::from_ref(&session));
    assert_eq!(own("session.get_auth_user_name"), "ops");
    assert_eq!(own("session.get_is_local_superuser"), "Bool(false)");
    assert_eq!(own("session.get_last_active"), "20260101T12:00:00Z");
    assert!(own("session.get_this_host").starts_with("OpaqueRef:"));
    let may = own("session.get_rbac_permissions");
    assert!(may.contains("\"vm.start\"") && !may.contains("\"vm.set_domain_type\""), "{may}");
    let record = ask(&mut pool, START, &session, "session.get_record", std::slice::from_ref(&session));
    assert!(record.contains("is_local_superuser") && record.contains("vm.start"), "{record}");
    assert_eq!(
        ask(&mut pool, START, &session, "session.get_record", &[]),
        "MESSAGE_PARAMETER_COUNT_MISMATCH"
    );
    let own = pool.perform(START, ADMIN, "session.get_record", &[]).unwrap();
    assert_eq!(own.get("is_local_superuser"), Some(&Value::Bool(true)));
    assert_eq!(ask(&mut pool, START, &session, "session.logout", &[]), "");
    assert_eq!(ask(&mut pool, START, &session, "pool.get_all", &[]), "SESSION_INVALID");
}

#[test]
fn a_refusal_names_the_permission_and_who_has_it() {
    let mut pool = Pool::new(1, Release::V8_2);
    let uuid = pool.add_vm(VmSpec::default());
    let vm = Value::string(pool.db.by_uuid(Class::Vm, &uuid).unwrap());
    for role in Role::ALL {
        assert_eq!(Role::named(role.name()), Some(role));
        pool.add_account(role.name(), Secret::new("secret".to_owned()), role);
    }
    let rows = [
        ("vm-operator", "VM.set_domain_type", "hvm", "vm.set_domain_type"),
        ("vm-admin", "VM.set_memory_static_max", "1", "vm.set_memory_static_max"),
        ("vm-operator", "VM.remove_from_other_config", "bootflip:claim", "vm.remove_from_other_config"),
        ("pool-operator", "VM.remove_from_other_config", "pci", "vm.remove_from_other_config/key:pci"),
        ("read-only", "VM.remove_from_other_config", "folder", "vm.remove_from_other_config/key:folder"),
        ("vm-operator", "VM.remove_from_other_config", "folder", ""),
        ("vm-operator", "VM.remove_from_other_config", "XenCenter.CustomFields.a", ""),
    ];
    for (user, method, word, permission) in rows {
        let session = login(&mut pool, START, &[user, "secret"]).unwrap();
        let answer = pool.call(START, method, &[session, vm.clone(), Value::string(word)]);
        let lacks = answer.map_or_else(|failure| failure.params, |_| vec![String::new()]);
        assert_eq!(lacks[0], permission, "{user} {method} {word}");
        if method == "VM.set_domain_type" {
            let reason = "No permission in user session. (Roles with this permission: pool-admin, pool-operator, \
                          vm-power-admin, vm-admin)";
            assert_eq!(lacks[1], reason);
        }
    }
}

#[test]
fn event_next_tells_a_registered_session_what_changed() {
    for release in [Release::V5_6, Release::V6_0, Release::V8_2] {
        let mut rig = Rig::pv(release);
        let pool = &mut rig.pool;
        let session = login(pool, START, &["root", DEFAULT_PASSWORD]).unwrap();
        let key = session.as_str().unwrap().to_owned();
        assert_eq!(ask(pool, START, &session, "event.next", &[]), "SESSION_NOT_REGISTERED");
        let classes = Value::Array(vec![Value::string("vm")]);
        assert_eq!(ask(pool, START, &session, "event.register", std::slice::from_ref(&classes)), "");
        assert!(!pool.has_next_events(&key));
        assert_eq!(ask(pool, START, &session, "event.next", &[]), "Array([])");
        let vm = Value::string(&rig.vm);
        ask(pool, START, &session, "VM.set_PV_args", &[vm.clone(), Value::string("quiet")]);
        assert!(pool.has_next_events(&key));
        let told = ask(pool, START, &session, "event.next", &[]);
        assert!(told.contains("\"mod\"") && told.contains(&rig.vm), "{told}");
        assert_eq!(told.contains("snapshot"), release.api >= Release::V6_0.api, "{}", release.name);
        for number in 0..501 {
            ask(pool, START, &session, "VM.set_PV_args", &[vm.clone(), Value::string(number.to_string())]);
        }
        assert_eq!(ask(pool, START, &session, "event.next", &[]), "EVENTS_LOST");
        ask(pool, START, &session, "event.unregister", std::slice::from_ref(&classes));
        ask(pool, START, &session, "event.register", &[classes]);
        assert_eq!(ask(pool, START, &session, "event.next", &[]), "Array([])");
        pool.lose_events();
        assert!(pool.has_next_events(&key));
        assert_eq!(ask(pool, START, &session, "event.next", &[]), "EVENTS_LOST");
    }
}

#[test]
fn a_lost_token_starts_again_from_the_beginning() {
    let mut rig = Rig::pv(Release::V8_2);
    let from = |rig: &mut Rig, token: &str| {
        let classes = Value::Array(vec![Value::string("VM")]);
        let params = [classes, Value::string(token), Value::Double(1.0)];
        let batch = rig.pool.call_trusted(START, Method::EventFrom, &params);
        batch.map(|batch| batch.get("token").unwrap().as_str().unwrap().to_owned())
    };
    let token = from(&mut rig, "").unwrap();
    rig.pool.lose_events();
    assert_eq!(from(&mut rig, &token).unwrap_err().code, "EVENTS_LOST");
    let token = from(&mut rig, "").unwrap();
    assert!(from(&mut rig, &token).is_ok());
    let injected = rig.call("event.inject vm VM");
    let injected = injected.trim_start_matches("ok ").to_owned();
    let params =
        |token: &str| [Value::Array(vec![Value::string("vm")]), Value::string(token), Value::Double(1.0)];
    assert!(rig.pool.has_events(&params(&injected)), "the token is from before the injected change");
    assert_eq!(rig.call("event.inject vm nobody"), "HANDLE_INVALID [vm, nobody]");
}
