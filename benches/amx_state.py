"""The state of AMX on this machine: `python benches/amx_state.py` prints it, other benchmarks record it.

On a virtual machine the other hardware thread of a core may belong to another guest. While it is busy (`shared`), a kernel that uses
all eight tile registers runs at a quarter of its speed (docs/performance.md), and so does PyTorch's; the state changes within
milliseconds. Each probe is such a kernel from the first-level cache, 6 to 25 µs long. Linux on x86-64 only.
"""

import ctypes
import mmap
import time

# ldtilecfg [rdi]; then 200 times, timed by rdtsc: four tile loads at rsi, four tdpbf16ps on tmm0 to tmm3; tilerelease.
CODE = bytes.fromhex(
    "c4e2784907b9400000000faee80f3148c1e2204809d04989c0bac8000000c4e27b4b240ec4e27b4bb40e00040000c4e24a5cc4"
    "c4e27b4bbc0e00080000c4e2425cccc4e27b4bac0e000c0000c4e24a5cd5c4e2425cddffca75c40faee80f3148c1e2204809d04c29c0"
    "c4e27849c0c3"
)
OPERATIONS = 200 * 4 * 2 * 16 * 16 * 32
# GFLOP/s between the two states: 530 to 570 shared, 2,320 alone.
LIMIT = 1200


def has_amx():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
    return "amx_bf16" in flags.split() and ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


class Probe:
    def __init__(self):
        self.code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.code.write(CODE)
        self.data = mmap.mmap(-1, 8192)
        # bf16 values around one: the clock is lower on them than on zeros.
        self.data.write(bytes([37, 0x3F, 141, 0xBF]) * 1024)
        configuration = bytearray(64)
        configuration[0] = 1
        for register in range(8):
            configuration[16 + 2 * register], configuration[48 + register] = 64, 16
        self.data.write(bytes(configuration))
        address = lambda memory: ctypes.addressof(ctypes.c_char.from_buffer(memory))
        kernel = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p)(address(self.code))
        self.run = lambda: kernel(address(self.data) + 4096, address(self.data))
        ticks, start = self.run_ticks(), time.perf_counter()
        while time.perf_counter() - start < 0.05:
            pass
        self.rate = (self.run_ticks() - ticks) / (time.perf_counter() - start)

    @staticmethod
    def run_ticks():
        # rdtsc; shl rdx, 32; or rax, rdx; ret
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("0f3148c1e2204809d0c3"))
        return ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()

    def gflops(self):
        return OPERATIONS / (self.run() / self.rate) / 1e9


def state(probes=200):
    """`{"alone": share of probes, "gflops": their median}` over a fifth of a second; None where there is no AMX."""
    if not has_amx():
        return None
    probe = Probe()
    speeds = []
    for _ in range(probes):
        speeds.append(probe.gflops())
        time.sleep(0.001)
    return {"alone": sum(speed > LIMIT for speed in speeds) / probes, "gflops": round(sorted(speeds)[probes // 2])}


if __name__ == "__main__":
    found = state()
    print("no AMX" if found is None else f"alone in {found['alone']:.0%} of the probes, median {found['gflops']} GFLOP/s")
