//! The facts about a machine that matter to burnish, and a test of its kernels.

use std::fmt;
use std::path::PathBuf;

use burn::tensor::{DType, Tensor, TensorData};
use serde::Serialize;

use super::identity::instruction_set;
use crate::bytes::Size;
use crate::device::nodes::{Node, nodes};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Result};
use crate::files::cache_folder::cache_folder;
use crate::files::space::free_bytes;
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::{self, Projected};
use crate::pull::hub::Hub;
use crate::train::parallel::launch::{Launched, advice};

/// The facts about a machine.
#[derive(Debug, Serialize)]
pub struct Health {
    /// The version of burnish.
    pub version: &'static str,
    /// The devices that were compiled in.
    pub devices: Vec<&'static str>,
    /// The device that computes.
    pub device: String,
    /// The processor's name.
    pub processor: Option<String>,
    /// The instruction set of the kernels, on the processor.
    pub instruction_set: Option<&'static str>,
    /// Threads that compute.
    pub threads: usize,
    /// The nodes of the machine that this process may run on; none where the system does not say.
    pub nodes: Vec<Node>,
    /// The memory of the machine, in bytes.
    pub memory_bytes: Option<u64>,
    /// The part of it that is free or can be freed.
    pub available_bytes: Option<u64>,
    /// The limit that a container sets.
    pub limit_bytes: Option<u64>,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The room on its disk.
    pub cache_free_bytes: Option<u64>,
    /// Whether the network is left alone (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The largest relative difference of a product by the device's kernels from one by plain sums, for f32 and bf16.
    pub differences: [f64; 2],
}

/// The share of the available memory that a run may plan with.
const MEMORY_SHARE: f64 = 0.8;
/// The largest difference that rounding explains, for f32 and bf16.
const ALLOWED: [f64; 2] = [1e-5, 2e-2];

impl Health {
    /// Whether the kernels compute what they should.
    pub fn is_good(&self) -> bool {
        self.differences.iter().zip(ALLOWED).all(|(difference, allowed)| *difference <= allowed)
    }
}

/// Looks at the machine and tries the kernels of a device.
///
/// # Errors
/// Input: the device is not there; no folder for the cache.
pub fn health(choice: &DeviceChoice) -> Result<Health> {
    let opened = device::open(choice)?;
    let cache = cache_folder()?;
    let existing = cache.ancestors().find(|folder| folder.is_dir());
    Ok(Health {
        version: env!("CARGO_PKG_VERSION"),
        devices: device::compiled_in(),
        device: choice.to_string(),
        processor: device::processor(),
        instruction_set: instruction_set(choice),
        threads: rayon::current_num_threads(),
        nodes: nodes(),
        memory_bytes: memory("MemTotal:"),
        available_bytes: memory("MemAvailable:"),
        limit_bytes: limit(),
        cache_free_bytes: existing.and_then(free_bytes),
        cache,
        offline: Hub::from_env()?.offline,
        differences: [difference(&opened, DType::F32)?, difference(&opened, DType::BF16)?],
    })
}

/// A line of Linux's account of its memory, in bytes.
fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 =
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The memory that runs may plan with, in bytes: a share of what is available, or of less where a container sets a limit. `None` where
/// the system does not say.
pub(super) fn memory_to_plan_with() -> Option<u64> {
    let usable = [memory("MemAvailable:"), limit()].into_iter().flatten().min();
    usable.map(|bytes| (bytes as f64 * MEMORY_SHARE) as u64)
}

/// The limit of this process's control group; `None` where there is none.
fn limit() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    text.trim().parse().ok()
}

/// The relative difference of a product by the kernels from plain sums.
fn difference(device: &burn::tensor::Device, dtype: DType) -> Result<f64> {
    /// Odd sizes, so that the ends of rows and panels are computed too.
    const SIZES: (usize, usize, usize) = (37, 131, 83);
    let (rows, inner, columns) = SIZES;
    let values = |count: usize, step: usize| -> Vec<f32> {
        // Small whole numbers, which both types hold exactly.
        (0..count).map(|index| ((index * step) % 17) as f32 - 8.0).collect()
    };
    let (x, weight) = (values(rows * inner, 7), values(columns * inner, 5));
    let frozen = frozen(&weight, columns, inner, dtype, device);
    let projected = [Projected { weight: &frozen, bias: None, low_rank: None, column_scale: None }];
    let input = Tensor::<2>::from_data(TensorData::new(x.clone(), [rows, inner]), device).cast(dtype);
    let ours = linear::linear(input, &projected, None).cast(DType::F32).into_data();
    let ours: Vec<f64> = ours.iter::<f64>().collect();
    if ours.len() != rows * columns {
        return Err(Error::failed("kernels", format!("{} values came out of {}", ours.len(), rows * columns)));
    }
    let exact = (0..rows * columns).map(|place| {
        let (row, column) = (place / columns, place % columns);
        let pairs = x[row * inner..][..inner].iter().zip(&weight[column * inner..][..inner]);
        pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
    });
    let (mut worst, mut largest) = (0f64, 0f64);
    for (ours, exact) in ours.into_iter().zip(exact) {
        // A value that is no number is as wrong as can be.
        let off = (ours - exact).abs();
        worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
        largest = largest.max(exact.abs());
    }
    Ok(worst / largest)
}

/// A weight in the type of a mode, on a device.
fn frozen(values: &[f32], rows: usize, columns: usize, dtype: DType, device: &burn::tensor::Device) -> FrozenWeight {
    #[cfg(feature = "cpu")]
    if crate::ops::is_processor(device) {
        use crate::files::Bytes;
        use crate::ops::cpu::matrix::{Matrix, Storage};
        use crate::quant::float;
        let storage = match dtype {
            DType::BF16 => Storage::Bf16(Bytes::from(float::encode_bf16(values))),
            _ => Storage::F32(Bytes::from(float::encode_f32(values))),
        };
        return FrozenWeight::from_matrix(Matrix::new(rows, columns, storage));
    }
    FrozenWeight::from_values(values.to_vec(), rows, columns, device, dtype)
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "not known".to_owned(), |bytes| Size(bytes).to_string());
        let [exact, rounded] = self.differences;
        writeln!(f, "burnish     {}, built for {}", self.version, self.devices.join(", "))?;
        writeln!(f, "device      {}", self.device)?;
        writeln!(f, "processor   {}", self.processor.as_deref().unwrap_or("not known"))?;
        if let Some(set) = self.instruction_set {
            writeln!(f, "kernels     {set}, {} threads", self.threads)?;
        }
        if let Some(advice) = advice(&self.nodes, Launched::of_this_process()) {
            writeln!(f, "nodes       {advice}")?;
        }
        let verdict = if self.is_good() { "right" } else { "WRONG: results of this machine cannot be trusted" };
        writeln!(f, "self-test   {verdict} (a product is off by {exact:.0e} in f32, {rounded:.0e} in bf16)")?;
        write!(f, "memory      {}, {} available", size(self.memory_bytes), size(self.available_bytes))?;
        match self.limit_bytes {
            Some(limit) => writeln!(f, "; this container may use {}", Size(limit))?,
            None => writeln!(f)?,
        }
        writeln!(f, "cache       {}, {} free", self.cache.display(), size(self.cache_free_bytes))?;
        write!(
            f,
            "network     {}",
            if self.offline { "left alone (HF_HUB_OFFLINE)" } else { "used to fetch bases only" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_nodes_are_reported_with_advice() {
        let mut health = health(&DeviceChoice::Cpu).expect("a machine");
        let node = |number| Node { number, processors: vec![number] };
        health.nodes = vec![node(0), node(1)];
        assert!(health.to_string().contains("\nnodes       this process may run on 2 NUMA nodes"), "{health}");
        health.nodes.pop();
        assert!(!health.to_string().contains("\nnodes"), "{health}");
    }
}
