//! No buffer of the size of a decoded weight is ever made: every allocation is watched while packed weights are
//! multiplied, forward and backward. A binary of its own, so that nothing else allocates meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor};
use burnish::files::{Dtype, FloatType, RawTensor};
use burnish::model::StoredWeight;
use burnish::model::load::Quant;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::cpu::pool;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{LowRankPair, Projected, linear};
use burnish::quant::BlockType;

/// Counts live bytes and remembers the largest request.
struct Watching;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

const ROWS: usize = 3072;
const COLUMNS: usize = 2048;
const TOKENS: usize = 64;

/// The largest buffer, and how much more than before was live at once.
fn watched<R>(work: impl FnOnce() -> R) -> (R, usize, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    let result = work();
    (result, LARGEST.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed) - before)
}

fn weights() -> Vec<(&'static str, Storage)> {
    let values: Vec<f32> = (0..ROWS * COLUMNS).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 5000.0 - 0.1).collect();
    let raw = |dtype, bytes: Vec<u8>| RawTensor { dtype, shape: vec![ROWS, COLUMNS], bytes: bytes.into() };
    let dense = raw(Dtype::F32, FloatType::F32.encode(&values));
    let packed = |quant| match StoredWeight::Dense(dense.clone()).packed("w", quant) {
        Ok(StoredWeight::Nf4(tensor)) => Storage::Nf4(tensor),
        Ok(StoredWeight::Int8(tensor)) => Storage::Int8(tensor),
        other => panic!("packed: {other:?}"),
    };
    let blocks = |block: BlockType| {
        let count = ROWS * COLUMNS / block.values_per_block();
        // Any bytes are blocks; scales of 2^-14 keep the values small.
        let bytes: Vec<u8> = (0..count * block.bytes_per_block()).map(|i| (i % 5) as u8).collect();
        Storage::Blocks(block, bytes.into())
    };
    let mut all = vec![
        ("nf4", packed(Quant::Nf4)),
        ("nf4-double", packed(Quant::Nf4Double)),
        ("int8", packed(Quant::Int8)),
        ("f16", Storage::F16(FloatType::F16.encode(&values).into())),
    ];
    all.extend(BlockType::ALL.map(|block| (block.name(), blocks(block))));
    all
}

#[test]
fn packed_weights_are_never_decoded_whole() {
    // Every thread keeps buffers of its own: as many threads everywhere.
    pool::use_threads(2);
    let device = Device::flex();
    let decoded = ROWS * COLUMNS * 2;
    for (name, storage) in weights() {
        let weight = FrozenWeight::from_matrix(Matrix::new(ROWS, COLUMNS, storage));
        for dtype in [burn::tensor::DType::F32, burn::tensor::DType::BF16] {
            let autodiff = device.clone().autodiff();
            let run = || {
                let x = Tensor::<2>::ones([TOKENS, COLUMNS], &autodiff).cast(dtype).require_grad();
                let a = Tensor::<2>::ones([8, COLUMNS], &autodiff).require_grad();
                let b = Tensor::<2>::ones([ROWS, 8], &autodiff).require_grad();
                let low_rank = LowRankPair { a: a.clone(), b: b.clone(), scale: 0.5, dropout: None };
                let projected = Projected { weight: &weight, bias: None, low_rank: Some(low_rank), column_scale: None };
                let mut gradients =
                    linear(x.clone(), &[projected], None).cast(burn::tensor::DType::F32).sum().backward();
                [x.grad_remove(&mut gradients), a.grad_remove(&mut gradients), b.grad_remove(&mut gradients)]
                    .iter()
                    .all(Option::is_some)
            };
            // Buffers that threads keep are made the first time; they count as well.
            let (complete, largest, peak) = watched(run);
            assert!(complete, "{name}: gradients of the input and both factors");
            assert!(largest < decoded / 4, "{name} {dtype:?}: a buffer of {largest} bytes; decoded it has {decoded}");
            assert!(peak < decoded, "{name} {dtype:?}: {peak} bytes at once; decoded it has {decoded}");
        }
    }
}

#[test]
fn the_watch_sees_what_decoding_whole_would_be() {
    let (values, largest, _) = watched(|| vec![1f32; ROWS * COLUMNS]);
    assert!(values.len() == ROWS * COLUMNS && largest >= ROWS * COLUMNS * 4);
}
