"""A process group from the environment that torchrun sets, one process per GPU, or per share of a machine's cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from accel.distributed.ranks import Ranks, reason
from accel.errors import AccelError

LINE = "torchrun --standalone --nproc-per-node 2 -m accel.distributed PHOTOS --out DIR"
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined(device: str = "auto", *, seconds: float = 600.0) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks that torchrun started, joined over nccl on CUDA and over gloo else, and this rank's device.

    device: "cpu", "cuda" (GPU number LOCAL_RANK), or "auto" (CUDA where every local rank has a GPU). seconds: how long
    a rank waits for another before it gives up. An exception inside leaves word of itself to the other ranks.

    AccelError without torchrun's environment, for a device that is not there, and where ranks do not find each other.
    """
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise AccelError(f"{', '.join(missing)} not set: this command is started by torchrun, as in: {LINE}")
    if not 0 < seconds < 1e9:
        raise AccelError(f"timeout={seconds:g} is not a positive number of seconds, such as 600")
    place = _device(device)
    limit = timedelta(seconds=seconds)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit,
            device_id=place if place.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise AccelError(f"the ranks did not find each other ({reason(error)}); start all of them again") from error
    ranks = Ranks(store=dist.PrefixStore("accel", store))
    try:
        yield ranks, place
    except BaseException as error:
        ranks.stop(" ".join(str(error).split()) or type(error).__name__)
        raise  # without destroy_process_group, which would wait for the others; the end of the process closes all
    dist.destroy_process_group()


def _device(name: str) -> torch.device:
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and there < int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise AccelError(f'device "{name}" is not one of auto, cpu, cuda (each rank takes the GPU of its local number)')
    if local >= there:
        raise AccelError(
            f"rank {os.environ['RANK']} is number {local} on this machine, which has {there} CUDA devices; start "
            f"--nproc-per-node {max(there, 1)}, or give --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
