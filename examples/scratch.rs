use burn::tensor::Device;
use burnish::{
    adapter::{attach::AdapterSpec, spec::Target},
    data::Batch,
    model::{decoder::Recompute, load::*, *},
};
use std::time::Instant;
#[global_allocator]
static G: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let bf16 = args[1] == "bf16";
    let seqs: usize = args[2].parse().unwrap();
    let len: usize = args[3].parse().unwrap();
    let all = args[4] == "all";
    let rec = if args[5] == "block" { Recompute::Block } else { Recompute::None };
    let keep = args.get(6).is_some_and(|s| s == "keep");
    let t = Instant::now();
    let base = BaseFiles::open(std::path::Path::new("/root/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let d = Decoder::load(
        &base,
        &LoadOptions {
            device: Device::flex(),
            compute: if bf16 { Compute::Bf16 } else { Compute::F32 },
            quant: if keep { Quant::Keep } else { Quant::None },
        },
        |_, _| {},
    )
    .unwrap();
    eprintln!("load {:.2}s", t.elapsed().as_secs_f64());
    let targets = if all { Target::ALL[..7].to_vec() } else { vec![Target::Q, Target::V] };
    let h =
        AdapterSpec { rank: 8, alpha: 16.0, dropout: 0.0, rslora: false, targets }.initialise(d.config(), 0).unwrap();
    let a = h.attach(d.config(), &Device::flex().autodiff()).unwrap();
    let ids: Vec<u32> = (0..seqs * len).map(|i| ((i * 7919 + 13) % 49152) as u32).collect();
    let b = Batch { ids, lengths: vec![len; seqs], trained: vec![true; seqs * len] };
    let cpu = || {
        let mut u: libc::rusage = unsafe { std::mem::zeroed() };
        unsafe { libc::getrusage(0, &mut u) };
        (
            u.ru_utime.tv_sec as f64 + u.ru_utime.tv_usec as f64 / 1e6,
            u.ru_stime.tv_sec as f64 + u.ru_stime.tv_usec as f64 / 1e6,
        )
    };
    let mut ts = vec![];
    let mut cs = vec![];
    for _ in 0..6 {
        let c0 = cpu();
        let t = Instant::now();
        let r = d.loss_and_gradients(&b, &a, 0, 1.0, rec);
        let s = t.elapsed().as_secs_f64();
        ts.push(s);
        let c1 = cpu();
        cs.push((c1.0 - c0.0, c1.1 - c0.1));
        let _ = r;
    }
    ts.sort_by(f64::total_cmp);
    let mut u: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(0, &mut u) };
    println!("cpu user/sys {:?}", cs);
    println!(
        "{:?}: median {:.3}s {:.0} tok/s best {:.0}; peak {} MB",
        &args[1..],
        ts[3],
        (seqs * len) as f64 / ts[3],
        (seqs * len) as f64 / ts[0],
        u.ru_maxrss / 1024
    );
}
