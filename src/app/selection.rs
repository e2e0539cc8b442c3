//! Which VMs a selector means. Pure: the VMs of all pools go in, the chosen ones and what cannot be resolved come
//! out. `name~GLOB` and `tag=…` mean all guests that fit; a name label must fit one guest only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{provision::preflight::glob_fits, xen::records::VmRecord};

/// A VM that a selector may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The pool's name in the configuration.
    pub pool: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`.
    pub name: String,
    /// `tags`.
    pub tags: Vec<String>,
    /// Neither template nor snapshot nor control domain.
    pub guest: bool,
}

impl Candidate {
    /// From the pool's record.
    pub fn of(pool: &str, vm: &VmRecord) -> Self {
        Self {
            pool: pool.to_owned(),
            uuid: vm.uuid.clone(),
            name: vm.name_label.clone(),
            tags: vm.tags.clone(),
            guest: !(vm.is_a_template || vm.is_a_snapshot || vm.is_control_domain),
        }
    }
}

impl Candidate {
    /// Whether a member of a group means it: its name or uuid, `uuid=U`, `tag=T`, `name~GLOB`.
    pub fn is_meant_by(&self, member: &str) -> bool {
        if let Some(tag) = member.strip_prefix("tag=") {
            return self.tags.iter().any(|found| found == tag);
        }
        if let Some(glob) = member.strip_prefix("name~") {
            return glob_fits(glob, &self.name);
        }
        match member.strip_prefix("uuid=") {
            Some(uuid) => self.uuid == uuid,
            None => self.uuid == member || self.name == member,
        }
    }
}

/// A selector that names no VM, or not one alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Unresolved {
    /// As given.
    pub selector: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// What selectors came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The VMs, each once, in the order in which they were named.
    pub chosen: Vec<Candidate>,
    /// What could not be resolved.
    pub unresolved: Vec<Unresolved>,
}

/// Resolves selectors: a uuid, a name label, `uuid=U`, `tag=T`, `name~GLOB`.
pub fn resolve(selectors: &[String], candidates: &[Candidate]) -> Selection {
    let mut selection = Selection::default();
    let mut seen = BTreeSet::new();
    for selector in selectors {
        match meant(selector, candidates) {
            Ok(found) => {
                selection.chosen.extend(found.into_iter().filter(|vm| seen.insert(vm.uuid.clone())).cloned());
            }
            Err(problem) => selection.unresolved.push(Unresolved { selector: selector.clone(), problem }),
        }
    }
    selection
}

fn meant<'a>(selector: &str, candidates: &'a [Candidate]) -> Result<Vec<&'a Candidate>, String> {
    let many = |fits: &dyn Fn(&Candidate) -> bool, what: &str| {
        let found: Vec<_> = candidates.iter().filter(|vm| vm.guest && fits(vm)).collect();
        if found.is_empty() { Err(format!("no guest {what}")) } else { Ok(found) }
    };
    if let Some(tag) = selector.strip_prefix("tag=") {
        return many(&|vm| vm.tags.iter().any(|found| found == tag), &format!("carries the tag \"{tag}\""));
    }
    if let Some(glob) = selector.strip_prefix("name~") {
        return many(&|vm| glob_fits(glob, &vm.name), &format!("has a name that fits \"{glob}\""));
    }
    let plain = selector.strip_prefix("uuid=").unwrap_or(selector);
    if let Some(vm) = candidates.iter().find(|vm| vm.uuid == plain) {
        return Ok(vec![vm]);
    }
    let named: Vec<_> = candidates.iter().filter(|vm| vm.name == plain).collect();
    let guests: Vec<_> = named.iter().copied().filter(|vm| vm.guest).collect();
    match (guests.as_slice(), named.as_slice()) {
        ([only], _) | ([], [only]) => Ok(vec![*only]),
        ([], []) => {
            Err("no VM has this name or uuid; `bootflip vm list` shows those of the configured pools"
                .to_owned())
        }
        ([], several @ [_, ..]) | (several @ [_, ..], _) => {
            let uuids: Vec<String> =
                several.iter().map(|vm| format!("{} (pool {})", vm.uuid, vm.pool)).collect();
            Err(format!("{} VMs have this name; name one by its uuid: {}", several.len(), uuids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(pool: &str, uuid: &str, name: &str, tag: &str, guest: bool) -> Candidate {
        Candidate { pool: pool.into(), uuid: uuid.into(), name: name.into(), tags: vec![tag.into()], guest }
    }

    fn pools() -> Vec<Candidate> {
        vec![
            vm("a", "u1", "web-1", "new", true),
            vm("a", "u2", "web-2", "new", true),
            vm("a", "u3", "twin", "", true),
            vm("b", "u4", "twin", "", true),
            vm("b", "u5", "db", "", true),
            vm("b", "u6", "db", "", false),
            vm("b", "u7", "Debian template", "new", false),
        ]
    }

    #[track_caller]
    fn check(selectors: &[&str], uuids: &[&str]) {
        let selectors: Vec<String> = selectors.iter().map(|&s| s.to_owned()).collect();
        let selection = resolve(&selectors, &pools());
        assert_eq!(selection.unresolved, []);
        assert_eq!(selection.chosen.iter().map(|vm| vm.uuid.as_str()).collect::<Vec<_>>(), uuids);
    }

    #[track_caller]
    fn refuses(selector: &str, problem: &str) {
        let selection = resolve(&[selector.to_owned()], &pools());
        assert_eq!(selection.chosen, []);
        assert_eq!(selection.unresolved[0].problem, problem);
    }

    #[test]
    fn names_uuids_tags_and_globs_choose_each_vm_once() {
        check(&["web-1"], &["u1"]);
        check(&["u3", "uuid=u4"], &["u3", "u4"]);
        check(&["web-2", "tag=new"], &["u2", "u1"]);
        check(&["name~w?b-*"], &["u1", "u2"]);
    }

    #[test]
    fn a_group_means_its_members_by_name_uuid_tag_and_glob() {
        let vm = vm("a", "u1", "web-1", "new", true);
        for (member, meant) in [
            ("web-1", true),
            ("u1", true),
            ("uuid=u1", true),
            ("uuid=web-1", false),
            ("tag=new", true),
            ("tag=old", false),
            ("name~web-*", true),
            ("name~db*", false),
            ("web", false),
        ] {
            assert_eq!(vm.is_meant_by(member), meant, "{member}");
        }
    }

    #[test]
    fn template_of_the_same_name_does_not_make_a_guest_ambiguous() {
        check(&["db"], &["u5"]);
        check(&["Debian template"], &["u7"]);
    }

    #[test]
    fn ambiguous_label_lists_both_uuids() {
        refuses("twin", "2 VMs have this name; name one by its uuid: u3 (pool a), u4 (pool b)");
    }

    #[test]
    fn nothing_found_says_where_to_look() {
        refuses(
            "nobody",
            "no VM has this name or uuid; `bootflip vm list` shows those of the configured pools",
        );
        refuses("tag=old", "no guest carries the tag \"old\"");
        refuses("name~x*", "no guest has a name that fits \"x*\"");
    }
}
