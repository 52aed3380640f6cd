use burnish::ops::cpu::{isa::Isa, kernel::*, pack::*, product::*};
use half::bf16;
use std::time::Instant;
struct W<'a>(&'a [bf16], usize);
impl Columns<bf16> for W<'_> {
    fn depth(&self) -> usize {
        self.1
    }
    fn pack(&self, first: usize, count: usize, p: &mut [bf16]) {
        let d = self.1;
        for (i, pan) in p.chunks_exact_mut(d * PANEL).enumerate() {
            let c = first + i * PANEL;
            pack_rows_bf16(&self.0[c * d..], d, (first + count - c).min(PANEL), d, pan);
        }
    }
}
struct F<'a>(&'a [f32], usize);
impl Columns<f32> for F<'_> {
    fn depth(&self) -> usize {
        self.1
    }
    fn pack(&self, first: usize, count: usize, p: &mut [f32]) {
        let d = self.1;
        for (i, pan) in p.chunks_exact_mut(d * PANEL).enumerate() {
            let c = first + i * PANEL;
            pack_rows_f32(&self.0[c * d..], d, (first + count - c).min(PANEL), d, pan);
        }
    }
}
fn main() {
    println!("{:?} threads {}", Isa::current(), rayon::current_num_threads());
    for (m, k, n) in [(1024, 576, 1536), (1024, 576, 960), (1024, 1536, 576), (2048, 2048, 8192), (360, 576, 1536)] {
        let a: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32(((i * 31 % 257) as f32 - 128.0) / 128.0)).collect();
        let w: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(((i * 37 % 251) as f32 - 125.0) / 128.0)).collect();
        let mut o = vec![bf16::ZERO; m * n];
        let af: Vec<f32> = a.iter().map(|v| v.to_f32()).collect();
        let wf: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
        let mut of = vec![0f32; m * n];
        let fl = 2.0 * (m * n * k) as f64 / 1e9;
        let mut t = vec![];
        for _ in 0..15 {
            let s = Instant::now();
            product::<bf16>(
                m,
                n,
                &[Term { rows: Rows::Bf16 { data: &a, stride: k }, columns: &W(&w, k) }],
                Epilogue::default(),
                Target::Bf16 { data: &mut o, stride: n },
            );
            t.push(fl / s.elapsed().as_secs_f64());
        }
        t.sort_by(f64::total_cmp);
        let mut g = vec![];
        for _ in 0..15 {
            let s = Instant::now();
            product::<bf16>(
                m,
                k,
                &[Term {
                    rows: Rows::Bf16 { data: &o, stride: n },
                    columns: &PlainColumns { data: &w, stride: k, depth: n, scale: 1.0 },
                }],
                Epilogue::default(),
                Target::Bf16 { data: &mut a.clone(), stride: k },
            );
            g.push(fl / s.elapsed().as_secs_f64());
        }
        g.sort_by(f64::total_cmp);
        let mut f = vec![];
        for _ in 0..15 {
            let s = Instant::now();
            product::<f32>(
                m,
                n,
                &[Term { rows: Rows::F32 { data: &af, stride: k }, columns: &F(&wf, k) }],
                Epilogue::default(),
                Target::F32 { data: &mut of, stride: n },
            );
            f.push(fl / s.elapsed().as_secs_f64());
        }
        f.sort_by(f64::total_cmp);
        println!(
            "{m}x{k}x{n}: bf16 {:.0} (max {:.0}) back {:.0} f32 {:.0} (max {:.0}) GFLOP/s",
            t[7], t[14], g[7], f[7], f[14]
        );
    }
}
