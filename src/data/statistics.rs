//! How long the sequences of a data set are.

use std::fmt;

use super::encode::Encoded;

/// Lengths of sequences, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    pub sequences: usize,
    /// Of whole sequences.
    pub tokens: Lengths,
    /// Of what loss is taken on.
    pub trained_tokens: Lengths,
}

/// Sum and percentiles of lengths. A percentile is the smallest length that at least so many percent of the
/// lengths do not exceed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lengths {
    pub total: usize,
    pub least: usize,
    pub median: usize,
    pub percent_90: usize,
    pub percent_99: usize,
    pub most: usize,
}

impl Statistics {
    /// Counts `sequences`.
    pub fn of(sequences: &[Encoded]) -> Self {
        Self {
            sequences: sequences.len(),
            tokens: Lengths::of(sequences.iter().map(|sequence| sequence.ids.len()).collect()),
            trained_tokens: Lengths::of(sequences.iter().map(Encoded::trained_tokens).collect()),
        }
    }
}

impl Lengths {
    fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (lengths.len() * percent).div_ceil(100).max(1);
            lengths.get(rank - 1).copied().unwrap_or_default()
        };
        Self {
            total: lengths.iter().sum(),
            least: lengths.first().copied().unwrap_or_default(),
            median: percentile(50),
            percent_90: percentile(90),
            percent_99: percentile(99),
            most: lengths.last().copied().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sequences", self.sequences)?;
        writeln!(
            f,
            "{:<8} {:>10} {:>6} {:>6} {:>6} {:>6} {:>6}",
            "tokens", "total", "least", "50%", "90%", "99%", "most"
        )?;
        for (name, lengths) in [("all", &self.tokens), ("trained", &self.trained_tokens)] {
            let Lengths { total, least, median, percent_90, percent_99, most } = lengths;
            writeln!(f, "{name:<8} {total:>10} {least:>6} {median:>6} {percent_90:>6} {percent_99:>6} {most:>6}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_occur() {
        let sequence =
            |length: usize| Encoded { ids: vec![0; length], trained: vec![true; length], untrained_turns: 0 };
        let sequences: Vec<Encoded> = (1..=200).rev().map(sequence).collect();
        let statistics = Statistics::of(&sequences);
        let expected = Lengths { total: 20_100, least: 1, median: 100, percent_90: 180, percent_99: 198, most: 200 };
        assert_eq!(statistics.tokens, expected);
        assert_eq!(statistics.trained_tokens.total, 20_100 - 200);
        assert_eq!(Statistics::of(&[]).tokens, Lengths::default());
        assert!(statistics.to_string().contains("20100"));
    }
}
