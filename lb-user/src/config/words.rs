//! Suggestions for misspelt words.

/// Returns the known word that is most similar, if one is similar enough.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = plain(word);
    // An abbreviation, such as least_conn.
    let mut longer = known.iter().filter(|it| plain(it).starts_with(&word));
    if let (Some(only), None) = (longer.next(), longer.next())
        && word.len() >= 3
    {
        return Some(*only);
    }
    let distance = |candidate: &str| strsim::damerau_levenshtein(&word, &plain(candidate));
    let nearest = known.iter().min_by_key(|candidate| distance(candidate))?;
    // At most half of the word may be wrong.
    (distance(nearest) <= word.chars().count().div_ceil(2)).then_some(*nearest)
}

/// A word without case and separators.
fn plain(word: &str) -> String {
    let letters = word.chars().filter(|it| !matches!(it, '_' | '-' | ' '));
    letters.flat_map(char::to_lowercase).collect()
}
