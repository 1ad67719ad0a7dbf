//! Abbreviates names and figures.

use std::collections::BTreeSet;

use lb_core::{Bytes, Share};

const ELLIPSIS: &str = "…";

/// Shortens names to `width` characters, in their middle, so that no two different names become equal.
pub fn shorten(names: &[String], width: usize) -> Vec<String> {
    let is_long = |name: &String| name.chars().count() > width;
    if !names.iter().any(is_long) {
        return names.to_vec();
    }
    let different: BTreeSet<&String> = names.iter().collect();
    let kept = width.saturating_sub(1);
    // The ends of names differ more often than their beginnings, also in addresses.
    let ends = (0..=kept)
        .rev()
        .map(|end| (end.abs_diff(kept * 2 / 3), end));
    let mut ends: Vec<(usize, usize)> = ends.collect();
    ends.sort_unstable();
    for (_, end) in ends {
        let cut = |name: &String| match is_long(name) {
            true => middle_cut(name, kept - end, end),
            false => name.clone(),
        };
        let short: BTreeSet<String> = different.iter().map(|name| cut(name)).collect();
        if short.len() == different.len() {
            return names.iter().map(cut).collect();
        }
    }
    // No cut keeps them different: their position in the order is added.
    let numbered = |name: &String| {
        if !is_long(name) {
            return name.clone();
        }
        let number = different.iter().position(|it| *it == name);
        let number = number.unwrap_or_default().to_string();
        let start = kept.saturating_sub(number.len());
        middle_cut(name, start, 0) + &number
    };
    names.iter().map(numbered).collect()
}

fn middle_cut(name: &str, start: usize, end: usize) -> String {
    let length = name.chars().count();
    let first = name.chars().take(start);
    let last = name.chars().skip(length.saturating_sub(end));
    first.chain(ELLIPSIS.chars()).chain(last).collect()
}

/// A count in at most five characters, such as `12.3k`.
pub fn count(count: u64) -> String {
    match count < 10_000 {
        true => count.to_string(),
        false => abbreviated(count, 1_000, ["k", "M", "G", "T", "P", "E"]),
    }
}

/// Bytes in at most five characters, such as `64.3M`; the units are powers of 1024.
pub fn bytes(bytes: Bytes) -> String {
    let Bytes(bytes) = bytes;
    match bytes < 1_000 {
        true => format!("{bytes}B"),
        false => abbreviated(bytes, 1_024, ["K", "M", "G", "T", "P", "E"]),
    }
}

/// The number in the largest of the units, powers of `base`, that gives less than 1000 when rounded: with one decimal
/// below 100, without above.
fn abbreviated(number: u64, base: u128, units: [&str; 6]) -> String {
    let number = u128::from(number);
    let (mut unit, mut scale) = (0, base);
    while (number + scale / 2) / scale >= 1_000 {
        unit += 1;
        scale *= base;
    }
    let tenths = (number * 10 + scale / 2) / scale;
    match tenths < 1_000 {
        true => format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]),
        false => format!("{}{}", (number + scale / 2) / scale, units[unit]),
    }
}

/// A share of the whole, given in hundredths of a percent.
pub fn share(share: u16) -> String {
    match share {
        0 => "-".to_owned(),
        _ => Share(share).to_string(),
    }
}

/// Formats an age in milliseconds; `None` means never.
pub fn age(age_ms: Option<u64>) -> String {
    match age_ms {
        None => "-".to_owned(),
        Some(ms) if ms < 10_000 => format!("{ms} ms"),
        Some(ms) if ms < 600_000 => format!("{} s", ms / 1_000),
        Some(ms) if ms < 360_000_000 => format!("{} min", ms / 60_000),
        Some(ms) => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_different() {
        let shortened = |names: &[&str], width| {
            let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
            shorten(&names, width)
        };
        assert_eq!(shortened(&["web-frontend-1", "b"], 10), ["web…tend-1", "b"]);
        assert_eq!(
            shortened(&["alpha-frontend-x", "bravo-frontend-x"], 10),
            ["alp…tend-x", "bra…tend-x"]
        );
        assert_eq!(
            shortened(&["first-backend", "other-backend", "first-backend"], 6),
            ["fi…end", "ot…end", "fi…end"]
        );
        // They differ in their middle only.
        let middle = shortened(&["aaaaaaaaaa1bbbbbbbbbb", "aaaaaaaaaa2bbbbbbbbbb"], 8);
        assert_ne!(middle[0], middle[1]);
    }

    #[test]
    fn figures_have_few_characters() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_950, "1.0M"),
            (12_345_678, "12.3M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
        }
        for (number, text) in [
            (964, "964B"),
            (1_000, "1.0K"),
            (1 << 20, "1.0M"),
            (1_023 << 20, "1.0G"),
            (391 << 20, "391M"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(bytes(Bytes(number)), text);
        }
        for (part, text) in [
            (0, "-"),
            (5, "0.05%"),
            (50, "0.50%"),
            (333, "3.3%"),
            (9_999, "99.9%"),
        ] {
            assert_eq!(share(part), text);
        }
        for (ms, text) in [
            (9_999, "9999 ms"),
            (10_000, "10 s"),
            (86_400_000, "1440 min"),
            (864_000_000, "10 d"),
        ] {
            assert_eq!(age(Some(ms)), text);
        }
    }

    proptest! {
        #[test]
        fn figures_fit_five_characters_and_are_accurate(number: u64) {
            for text in [count(number), bytes(Bytes(number))] {
                prop_assert!(text.len() <= 5, "{}", text);
            }
        }

        #[test]
        fn different_names_stay_different(
            names in prop::collection::vec("[ab]{0,20}-[a-b:]{0,20}", 1..40), width in 8_usize..24,
        ) {
            let short = shorten(&names, width);
            for (one, left) in names.iter().zip(&short) {
                prop_assert!(left.chars().count() <= width, "{}", left);
                for (other, right) in names.iter().zip(&short) {
                    prop_assert_eq!(one == other, left == right, "{} {} {} {}", one, other, left, right);
                }
            }
        }
    }
}
