//! How many installations of a plan would be under way at once, and on which hosts. Pure; admission decides anew when
//! it comes to it, from what the pool says then.

use std::collections::BTreeMap;

use super::admission::Caps;

/// One VM of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Bytes that it would take of a host beyond what it has now, while it runs as HVM.
    pub memory: u64,
    /// The hosts that may run it, by their references.
    pub hosts: Vec<String>,
}

/// How many of these VMs go at once on each host, by reference: in their order, each on the roomiest of its hosts.
/// `free` is each host's free memory in bytes; one that is missing there is not known to lack any.
pub fn at_once(wishes: &[Wish], free: &BTreeMap<String, u64>, caps: Caps) -> BTreeMap<String, u32> {
    let mut left = free.clone();
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let mut all = 0;
    for wish in wishes {
        if all >= caps.pool {
            break;
        }
        let count = |host: &&String| taken.get(*host).copied().unwrap_or_default();
        let room = |host: &&String| left.get(*host).copied().unwrap_or(u64::MAX);
        let fits = |host: &&String| count(host) < caps.host && room(host) >= wish.memory;
        let roomiest = wish.hosts.iter().filter(fits).max_by_key(|host| (room(host), u32::MAX - count(host)));
        let Some(host) = roomiest.cloned() else { continue };
        if let Some(left) = left.get_mut(&host) {
            *left = left.saturating_sub(wish.memory);
        }
        *taken.entry(host).or_default() += 1;
        all += 1;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_both_limits_bound_what_goes_at_once() {
        let wish = |memory, hosts: &str| Wish { memory, hosts: hosts.chars().map(String::from).collect() };
        let free = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(host, free)| ((*host).to_owned(), *free)).collect()
        };
        let four = |memory, hosts| vec![wish(memory, hosts); 4];
        for (what, wishes, free, (pool, host), expected) in [
            ("the pool's limit", four(1, "ab"), free(&[("a", 9), ("b", 9)]), (3, 9), "a2 b1"),
            ("each host's limit", four(1, "ab"), free(&[("a", 9), ("b", 9)]), (9, 1), "a1 b1"),
            ("memory", four(4, "ab"), free(&[("a", 9), ("b", 5)]), (9, 9), "a2 b1"),
            ("only one host may", four(1, "a"), free(&[("a", 9), ("b", 9)]), (9, 2), "a2"),
            ("no figure for a host", four(8, "a"), free(&[]), (9, 9), "a4"),
            ("none fits", four(8, "a"), free(&[("a", 7)]), (9, 9), ""),
            ("of none is known where", vec![wish(1, "")], free(&[("a", 7)]), (9, 9), ""),
            ("one too large", vec![wish(8, "a"), wish(1, "a")], free(&[("a", 7)]), (9, 9), "a1"),
        ] {
            let found = at_once(&wishes, &free, Caps { pool, host });
            let found: Vec<String> = found.iter().map(|(host, count)| format!("{host}{count}")).collect();
            assert_eq!(found.join(" "), expected, "{what}");
        }
    }
}
