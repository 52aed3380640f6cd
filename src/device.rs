//! The device that holds the tensors: `cpu`, `wgpu[:N]` or `cuda[:N]`, chosen at run time among those compiled in.
//!
//! No module but this one and `ops` names a backend.

pub mod nodes;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::error::{Error, Place, Result};

/// The device that `--device` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// Burn's Flex backend with our own kernels.
    #[default]
    Cpu,
    /// A GPU through wgpu: the N-th adapter, or the one wgpu prefers.
    Wgpu(Option<usize>),
    /// The N-th NVIDIA GPU, or the first.
    Cuda(Option<usize>),
}

impl DeviceChoice {
    /// The name before the colon, which is also the cargo feature that compiles it in.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu(_) => "wgpu",
            Self::Cuda(_) => "cuda",
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.feature())?;
        match self {
            Self::Wgpu(Some(index)) | Self::Cuda(Some(index)) => write!(f, ":{index}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("unknown device `{text}`; expected cpu, wgpu, wgpu:N, cuda or cuda:N");
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index)),
            _ => Err(unknown()),
        }
    }
}

/// Opens the device, without autodiff.
///
/// # Errors
/// Input: not compiled in (the message names the cargo feature), or no such device on this machine.
pub fn open(choice: &DeviceChoice) -> Result<Device> {
    match *choice {
        DeviceChoice::Cpu => cpu::open(),
        DeviceChoice::Wgpu(index) => wgpu::open(index),
        DeviceChoice::Cuda(index) => cuda::open(index),
    }
}

/// The processor's own name for itself; `None` where the system does not tell.
pub fn processor() -> Option<String> {
    let about = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = about.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The devices that this binary was compiled with, in the order of preference.
pub fn compiled_in() -> Vec<&'static str> {
    [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
        .into_iter()
        .filter_map(|(name, compiled)| compiled.then_some(name))
        .collect()
}

#[cfg(not(all(feature = "cpu", feature = "wgpu", feature = "cuda")))]
fn not_compiled_in(feature: &str) -> Error {
    let present = match compiled_in().join(", ") {
        none if none.is_empty() => "no device at all".to_owned(),
        names => names,
    };
    Error::input(Place::argument("--device"), format!("this burnish was built without `{feature}` (it has: {present})"))
        .hint(format!("build it with `cargo build --release --features {feature}`"))
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn no_such_device(name: &str, index: usize, found: &[Device]) -> Error {
    let message = match found.len() {
        0 => format!("no {name} device was found on this machine"),
        1 => format!("there is no {name}:{index}; this machine has {name}:0 only"),
        count => format!("there is no {name}:{index}; this machine has {name}:0 to {name}:{}", count - 1),
    };
    Error::input(Place::argument("--device"), message)
        .hint("`--device cpu` runs everywhere; docs/devices.md lists the drivers needed")
}

#[cfg(feature = "cpu")]
mod cpu {
    use super::{Device, Result};

    pub(super) fn open() -> Result<Device> {
        Ok(Device::flex())
    }
}

#[cfg(not(feature = "cpu"))]
mod cpu {
    use super::{Device, Result, not_compiled_in};

    pub(super) fn open() -> Result<Device> {
        Err(not_compiled_in("cpu"))
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use burn::tensor::{DeviceKind, DeviceType};

    use super::{Device, Result, no_such_device};

    /// Asks for the adapters first: opening a device that is not there panics in the runtime.
    pub(super) fn open(index: Option<usize>) -> Result<Device> {
        let adapters = Device::enumerate(DeviceType::Wgpu).into_vec();
        match index {
            None if !adapters.is_empty() => Ok(Device::wgpu(DeviceKind::DefaultDevice)),
            _ => {
                let index = index.unwrap_or(0);
                adapters.get(index).cloned().ok_or_else(|| no_such_device("wgpu", index, &adapters))
            }
        }
    }
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::{Device, Result, not_compiled_in};

    pub(super) fn open(_index: Option<usize>) -> Result<Device> {
        Err(not_compiled_in("wgpu"))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::PathBuf;

    use burn::tensor::DeviceType;

    use super::{Device, Error, Place, Result, no_such_device};

    /// CUDA's mathematical functions, below the folder of a toolkit.
    const LIBDEVICE: &str = "nvvm/libdevice/libdevice.10.bc";
    /// The folders that cubecl-llvm looks in where `CUDA_PATH` is not set.
    const TOOLKITS: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];

    /// Asks for the GPUs first: opening a device that is not there panics in the runtime, and so does compiling a kernel
    /// without CUDA's mathematical functions.
    pub(super) fn open(index: Option<usize>) -> Result<Device> {
        let gpus = Device::enumerate(DeviceType::Cuda).into_vec();
        let index = index.unwrap_or(0);
        let device = gpus.get(index).cloned().ok_or_else(|| no_such_device("cuda", index, &gpus))?;
        let toolkits = match std::env::var_os("CUDA_PATH") {
            Some(path) => vec![PathBuf::from(path)],
            None => TOOLKITS.map(PathBuf::from).to_vec(),
        };
        if toolkits.iter().any(|toolkit| toolkit.join(LIBDEVICE).is_file()) {
            return Ok(device);
        }
        let places: Vec<String> = toolkits.iter().map(|toolkit| toolkit.display().to_string()).collect();
        Err(Error::input(Place::argument("--device"), format!("{LIBDEVICE} was not found in {}", places.join(", "))).hint(
            "set CUDA_PATH to a CUDA toolkit, or to any folder with that file; PyTorch's triton brings it, too (docs/devices.md)",
        ))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{Device, Result, not_compiled_in};

    pub(super) fn open(_index: Option<usize>) -> Result<Device> {
        Err(not_compiled_in("cuda"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_parse_and_print() {
        for name in ["cpu", "wgpu", "wgpu:1", "cuda", "cuda:0"] {
            assert_eq!(name.parse::<DeviceChoice>().expect(name).to_string(), name);
        }
        for name in ["", "gpu", "cpu:0", "wgpu:", "wgpu:-1", "cuda:x", "CPU"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_is_not_there_is_a_named_error() {
        let error = open(&DeviceChoice::Cuda(Some(999))).expect_err("no machine has so many");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--device cpu"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_names_its_feature() {
        let error = open(&DeviceChoice::Cuda(None)).expect_err("built without cuda");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
