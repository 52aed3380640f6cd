//! Products of a few rows with several weights at once, split over threads by the rows of the weights.

use std::sync::Arc;

use super::activations::Input;
use super::exact;
use super::kernel::{MOST_ROWS, Tile, in_tiles, tile};
use super::panels::{Panels, ROWS};
use crate::ops::cpu::matrix::Matrix;
use crate::ops::cpu::pool;

/// Products of a task, at least: fewer take less time than another thread's attention.
const LEAST_PRODUCTS: usize = 1 << 15;
/// Tasks of a thread: its own share in several parts, so that a thread that is held up leaves some to the others.
const TASKS_PER_THREAD: usize = 4;

/// A frozen weight `[rows, columns]` for inference.
#[derive(Clone)]
pub enum Weight {
    /// The form of the file, for products in f32.
    AsStored(Arc<Matrix>),
    /// Repacked.
    Repacked(Arc<Panels>),
}

impl Weight {
    /// Number of rows (a projection's outputs).
    pub fn rows(&self) -> usize {
        match self {
            Self::AsStored(matrix) => matrix.rows(),
            Self::Repacked(panels) => panels.rows(),
        }
    }

    /// Number of columns (a projection's inputs).
    pub fn columns(&self) -> usize {
        match self {
            Self::AsStored(matrix) => matrix.columns(),
            Self::Repacked(panels) => panels.columns(),
        }
    }

    /// Whether its products take rounded activations.
    pub fn needs_codes(&self) -> bool {
        matches!(self, Self::Repacked(panels) if panels.needs_codes())
    }
}

/// A weight among those of a product, and the first column of its outputs.
pub struct Member<'a> {
    /// The weight.
    pub weight: &'a Weight,
    /// The column of its first output.
    pub column: usize,
}

/// Multiplies every row of `x` by every weight: `store(row, column, outputs)` takes up to 16 outputs of a row, those of a member
/// from `column` on; each output is given once. It is called from several threads.
pub fn products(x: &Input<'_>, members: &[Member<'_>], store: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let panels: Vec<usize> = members.iter().map(|member| member.weight.rows().div_ceil(ROWS)).collect();
    let total: usize = panels.iter().sum();
    let most_tasks = (total * ROWS * x.columns * x.rows).div_ceil(LEAST_PRODUCTS);
    let tasks = (TASKS_PER_THREAD * pool::threads()).min(most_tasks).min(total).max(1);
    pool::for_each(tasks, |task| {
        let mut first = 0;
        let mine = task * total / tasks..(task + 1) * total / tasks;
        for (member, &count) in members.iter().zip(&panels) {
            let (from, to) =
                (mine.start.clamp(first, first + count) - first, mine.end.clamp(first, first + count) - first);
            if from < to {
                multiply(x, member, from..to, &store);
            }
            first += count;
        }
    });
}

/// The panels `range` of a member.
fn multiply(
    x: &Input<'_>,
    member: &Member<'_>,
    range: std::ops::Range<usize>,
    store: &impl Fn(usize, usize, &mut [f32]),
) {
    let rows = member.weight.rows();
    let outputs_of = |panel: usize| ROWS.min(rows - panel * ROWS);
    match member.weight {
        Weight::Repacked(panels) => {
            let done = in_tiles(panels, range.clone(), x, |row, panel, out| {
                store(row, member.column + panel * ROWS, &mut out[..outputs_of(panel)]);
            });
            let mut out: Tile = [[0.0; ROWS]; MOST_ROWS];
            for panel in range {
                let mut row = done;
                while row < x.rows {
                    let left = x.rows - row;
                    // A row's sums are the same in a tile of any size.
                    let count = [8, 4, 2, 1].into_iter().find(|count| *count <= left).unwrap_or(1);
                    tile(panels, panel, x, row, count, &mut out);
                    for (index, out) in out.iter_mut().enumerate().take(count) {
                        store(row + index, member.column + panel * ROWS, &mut out[..outputs_of(panel)]);
                    }
                    row += count;
                }
            }
        }
        Weight::AsStored(matrix) => {
            let (mut decoded, mut out) = (vec![0f32; x.columns], vec![0f32; x.rows * ROWS]);
            for panel in range {
                let outputs = outputs_of(panel);
                let out = &mut out[..x.rows * outputs];
                exact::outputs(matrix, x.values, x.rows, panel * ROWS, &mut decoded, out);
                for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                    store(row, member.column + panel * ROWS, out);
                }
            }
        }
    }
}
