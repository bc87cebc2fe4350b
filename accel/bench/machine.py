"""The machine that is measured: what it is, what it can do, how long it took, and how much memory."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.flex import flex_kernel
from accel.provenance import provenance
from accel.report import machine as describe

MEMORY_BASIS = {
    "cuda": "peak of torch.cuda.max_memory_allocated during the call",
    "cpu": "growth of the peak resident memory during the call; freed memory that the allocator kept is not counted",
}


@dataclass(frozen=True)
class Machine:
    """A torch device; `clock` in seconds is replaced in tests."""

    device: torch.device
    clock: Callable[[], float] = field(default=time.perf_counter, compare=False)

    def description(self) -> dict[str, Any]:
        """Device, processor, threads, driver, versions, revision and date, as JSON values."""
        found = describe(str(self.device)) | provenance(device=self.device, dtype="of each case")
        found["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        found["python"], found["torch"], found["cuda"] = (
            platform.python_version(),
            torch.__version__,
            torch.version.cuda,
        )
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            found["device_name"], found["device_memory"] = properties.name, properties.total_memory
            found["capability"] = f"{properties.major}.{properties.minor}"
            found["driver"] = _driver()
        else:
            found["device_name"] = found["processor"]
        return found

    def identity(self) -> tuple[str, ...]:
        """What a time depends on beyond the code: device, threads, torch."""
        found = describe(str(self.device))
        return self.device.type, found["processor"], str(found["threads"]), torch.__version__

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        """Give freed memory back to the system."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            _trim()

    def lacks(self, dtype: torch.dtype) -> str:
        """Why tensors of this dtype cannot be measured here; empty where they can."""
        if dtype != torch.bfloat16:
            return ""
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < (8, 0):
            return "this GPU has no bfloat16 arithmetic (compute capability below 8.0)"
        try:
            q = torch.ones(1, 1, 16, 64, dtype=dtype, device=self.device)
            scaled_dot_product_attention(q, q, q)
        except (RuntimeError, NotImplementedError) as error:
            return f"bfloat16 attention does not run here: {first_line(error)}"
        return ""

    def lacks_compiler(self, dtype: torch.dtype, heads: int, dim: int, blocks: tuple[int, int]) -> str:
        """Why block-sparse attention has no kernel on this GPU; empty where it has, and on a CPU, which gathers."""
        if self.device.type != "cuda" or flex_kernel(str(self.device), dtype, heads, dim, blocks) is not None:
            return ""
        return (
            "flex_attention does not compile here (see the log), and gathering the blocks would measure another method"
        )


class PeakMemory:
    """`with PeakMemory(machine) as found:` then `found.bytes`, None where the system does not say.

    On CUDA the peak of allocated memory, weights included; on Linux the growth of the peak resident memory.
    """

    def __init__(self, machine: Machine):
        self.machine, self.bytes = machine, None

    def __enter__(self) -> PeakMemory:
        if self.machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.machine.device)
        else:
            self.machine.empty()  # else what another call left is used again and not seen
            self.before = _reset_resident()
        return self

    def __exit__(self, *error: object) -> None:
        if self.machine.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.machine.device)
        elif self.before is not None:
            self.bytes = max(0, _resident("VmHWM") - self.before)


def _resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def _reset_resident() -> int | None:
    """Resident memory now, after setting the peak to it; None where there is no such file, or it may not be written."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # no glibc
        pass


def _driver() -> str:
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in line.split() if word[0].isdigit()), "unknown")


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
