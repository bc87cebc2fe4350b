"""A table of GPUs for the cost model: public datasheets, and what of their peaks published runtimes show is reached.

A block without its attention is partly matrix products and partly passes over memory (norms, activations, residuals,
casts), so that with C channels it takes per token, and a network of C channels runs at the rate

    seconds = 24 C^2 / (matmul * peak) + block_bytes (C / 1024) / (copies * bandwidth),    linear = 24 C^2 / seconds.

One `block_bytes`, one launch time and one efficiency of the dense heads serve all GPUs; the rate of the attention
kernel is each GPU's own. `data/devices.json` holds these numbers, and for each entry says which rows it was fitted to;
`experiments/published_runtimes.py` fits them and compares the rest. `accel calibrate` measures the device at hand.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from accel.cost import Device
from accel.errors import AccelError

TABLE = Path(__file__).parent / "data" / "devices.json"
_SAME_HARDWARE = re.compile(r"NVIDIA|TESLA|GEFORCE|RTX|SXM\d?|HBM\d?E?")


@dataclass(frozen=True)
class Efficiencies:
    """What the GPUs of the table share: shares of the peaks, bytes, seconds.

    matmul: of the peak in matrix products; copies: of the memory's bandwidth; block_bytes: read and written per token
    of 1024 channels by the passes of one block; launch: seconds to launch one block's kernels; heads: of the peak in
    the dense heads' convolutions, which run in TF32.
    """

    matmul: float = 0.6
    copies: float = 0.8
    block_bytes: float = 4e5
    launch: float = 5e-4
    heads: float = 0.13


@dataclass(frozen=True)
class GPU:
    """One entry: dense bf16 (V100: fp16) operations per second, bytes per second, bytes; the attention kernel's rate.

    convolution: rate of the dense heads where it is not the shared efficiency (no TF32). source: where the rates come
    from.
    """

    name: str
    peak: float
    bandwidth: float
    memory: float
    attention: float
    source: str
    convolution: float | None = None

    def device(self, shared: Efficiencies, channels: int = 1024) -> Device:
        """As the rates of a `Device` for a network of so many channels, activations in 2 bytes."""
        work = 24.0 * channels**2
        copies = shared.copies * self.bandwidth
        each = work / (shared.matmul * self.peak) + shared.block_bytes * channels / 1024 / copies
        return Device(
            name=self.name,
            linear=work / each,
            attention=self.attention,
            convolution=self.convolution or shared.heads * self.peak,
            bandwidth=copies,
            itemsize=2,
            overhead=shared.launch,
            launch=shared.launch,
            queued=True,
        )


def load_table(path: Path = TABLE) -> tuple[Efficiencies, dict[str, GPU]]:
    """The shared efficiencies and the GPUs by name."""
    data = json.loads(path.read_text())
    gpus = {name: GPU(name=name, **entry) for name, entry in data["gpus"].items()}
    return Efficiencies(**data["shared"]), gpus


def gpu_named(name: str) -> GPU:
    """The entry of this name, upper or lower case; AccelError for an unknown one."""
    _, gpus = load_table()
    for key, gpu in gpus.items():
        if key.lower() == name.strip().lower():
            return gpu
    raise AccelError(
        f"{name!r} is no GPU of the table; use one of {list(gpus)}, or measure yours with `accel calibrate`"
    )


def device_named(name: str, *, channels: int = 1024) -> Device:
    """The rates of a GPU of the table for a network of so many channels; "H100 FA3": with FlashAttention-3."""
    return gpu_named(name).device(load_table()[0], channels)


def table_entry(cuda_name: str) -> GPU | None:
    """The entry for a name such as "NVIDIA H100 80GB HBM3", None where there is none.

    Every word of the name must be known, since another one (PCIe, NVL, Laptop, D, a MIG slice) says other hardware, and
    a memory in the name must be the entry's.
    """
    _, gpus = load_table()
    words = [word for word in re.split(r"[\s-]+", cuda_name.upper()) if not _SAME_HARDWARE.fullmatch(word)]
    for key, gpu in gpus.items():
        sizes = {f"{gpu.memory / 1e9:.0f}GB"}
        if words[:1] == [key.upper().split()[-1]] and set(words[1:]) <= sizes:
            return gpu
    return None


def load_device(path: Path, *, sizes: str | None = None) -> Device:
    """The device that `accel calibrate --out` wrote; sizes: of whose layers its rates must be (None: of any).

    AccelError for a file that is none, or of other sizes.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise AccelError(f"{path} is no file of a device ({error}); write one with `accel calibrate --out`") from error
    if not isinstance(data, dict):
        raise AccelError(f"{path} holds no device; write one with `accel calibrate --out`")
    if sizes is not None and data.get("sizes") != sizes:
        found = f"layers of {data['sizes']!r}" if "sizes" in data else "layers that it does not name"
        raise AccelError(
            f"{path} has rates of {found}, not of {sizes!r}; write one with `accel calibrate --sizes {sizes} --out`"
        )
    try:
        found = data.get("device", data)
        if not isinstance(found, dict):
            raise AccelError(f"device={found!r} is no device")
        return Device.from_dict(found)
    except AccelError as error:
        raise AccelError(f"{path}: {error}; write one with `accel calibrate --out`") from error
