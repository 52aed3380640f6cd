//! A table as text with aligned columns, and as CSV.

use std::fmt;

use crate::error::printable;

/// A table of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(names: &[&str]) -> Self {
        Self { names: names.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn add(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// The table as CSV (RFC 4180). A cell that a spreadsheet would take for a formula begins with an apostrophe.
    pub fn csv(&self) -> String {
        let cell = |text: &String| {
            let is_formula =
                text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err() && text != "-";
            let text = if is_formula { format!("'{text}") } else { text.clone() };
            match text.contains(['"', ',', '\n', '\r']) {
                true => format!("\"{}\"", text.replace('"', "\"\"")),
                false => text,
            }
        };
        let line = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&self.names).chain(&self.rows).map(line).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &String| printable(text).replace(['\n', '\t'], " ");
        let lines: Vec<Vec<String>> =
            std::iter::once(&self.names).chain(&self.rows).map(|row| row.iter().map(shown).collect()).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.names.len()).map(width).collect();
        for line in lines {
            let cells = line.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_quoted() {
        let mut table = Table::new(&["a", "name"]);
        table.add(vec!["1, \"2\"".to_owned(), "=1+1".to_owned()]);
        table.add(vec!["-0.5".to_owned(), "x".to_owned()]);
        assert_eq!(table.csv(), "a,name\n\"1, \"\"2\"\"\",'=1+1\n-0.5,x\n");
        assert_eq!(table.to_string(), "a       name\n1, \"2\"  =1+1\n-0.5    x\n");
    }
}
