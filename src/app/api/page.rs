//! Pages of lists: `limit` and an opaque `cursor`. Pure.
//!
//! Invariant: whoever follows `next` to the end sees every item that was there all the time, once, whatever came and
//! went meanwhile.

use super::problem::{Kind, Refusal};
use crate::secret::hex;

/// Items of a page when nobody says.
const LIMIT: u32 = 100;

/// The most items of a page.
pub(super) const MOST: u32 = 1000;

/// Which way a list goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The least key first.
    Up,
    /// The greatest key first.
    Down,
}

/// Where a page begins, and how long it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// `limit`.
    pub(super) limit: Option<u32>,
    /// `cursor`.
    pub(super) cursor: Option<&'a str>,
    /// Which way.
    pub(super) order: Order,
}

/// The page that is wanted of these items, and the cursor of the next one where there is more. `key` is different for
/// each item, and stays.
pub(super) fn page<T>(
    mut items: Vec<T>,
    wanted: Wanted<'_>,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, Option<String>), Refusal> {
    let limit = limit(wanted.limit)?;
    let after = wanted.cursor.map(read_cursor).transpose()?;
    items.sort_by_cached_key(&key);
    if wanted.order == Order::Down {
        items.reverse();
    }
    if let Some(after) = after {
        items.retain(|item| match wanted.order {
            Order::Up => key(item).as_bytes() > after.as_slice(),
            Order::Down => key(item).as_bytes() < after.as_slice(),
        });
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| hex(key(last).as_bytes()));
    Ok((items, next))
}

/// `limit` as a count.
pub(super) fn limit(wanted: Option<u32>) -> Result<usize, Refusal> {
    match wanted.unwrap_or(LIMIT) {
        limit @ 1..=MOST => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
        _ => Err(Refusal::new(Kind::InvalidRequest, format!("limit is 1 to {MOST}"))),
    }
}

/// The key behind which a page begins. Any hex will do: it only says where.
fn read_cursor(cursor: &str) -> Result<Vec<u8>, Refusal> {
    let hex = cursor.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let byte = |at: usize| cursor.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..cursor.len()).step_by(2).map(byte).collect();
    bytes.filter(|_| hex).ok_or_else(|| {
        Refusal::new(Kind::InvalidRequest, "cursor is not one that this server gave; begin without one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn following_the_cursor_shows_every_item_once() {
        let items: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
        for order in [Order::Up, Order::Down] {
            for limit in [1, 3, 5, 10, 11] {
                let (mut seen, mut cursor) = (Vec::new(), None::<String>);
                loop {
                    let wanted = Wanted { limit: Some(limit), cursor: cursor.as_deref(), order };
                    let (some, next) = page(items.clone(), wanted, Clone::clone).unwrap();
                    assert!(some.len() <= limit as usize);
                    seen.extend(some);
                    cursor = next;
                    if cursor.is_none() {
                        break;
                    }
                }
                let mut expected = items.clone();
                if order == Order::Down {
                    expected.reverse();
                }
                assert_eq!(seen, expected, "{order:?} by {limit}");
            }
        }
    }

    #[test]
    fn item_that_went_takes_no_other_with_it() {
        let wanted = |cursor| Wanted { limit: Some(2), cursor, order: Order::Up };
        let (_, next) = page(vec!["a", "b", "c", "d"], wanted(None), |item| (*item).to_owned()).unwrap();
        let rest = page(vec!["a", "c", "d"], wanted(next.as_deref()), |item| (*item).to_owned()).unwrap();
        assert_eq!(rest, (vec!["c", "d"], None));
    }

    #[test]
    fn what_is_no_cursor_or_limit_is_refused() {
        for (limit, cursor) in
            [(Some(0), None), (Some(1001), None), (None, Some("x")), (None, Some("+f")), (None, Some("é"))]
        {
            let wanted = Wanted { limit, cursor, order: Order::Up };
            assert!(page(vec![1], wanted, ToString::to_string).is_err(), "{limit:?} {cursor:?}");
        }
    }
}
