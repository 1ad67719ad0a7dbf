//! Counts with their noun, in singular or plural.

use std::fmt::Display;

/// Returns `1 worker` or `2 workers`.
pub fn counted<N: Display + Copy + TryInto<u64>>(count: N, noun: &str) -> String {
    let ending = match count.try_into() {
        Ok(1_u64) => "",
        _ if noun.ends_with('x') => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn count_of_one_uses_the_singular() {
        assert_eq!(counted(1, "worker"), "1 worker");
        assert_eq!(counted(0_u64, "worker"), "0 workers");
        assert_eq!(counted(2_usize, "prefix"), "2 prefixes");
    }
}
