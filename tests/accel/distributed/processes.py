"""Gloo processes for the tests: `run` calls a function on every rank of a pool, `launch` in processes of its own.

A fork server imports torch once; the processes of a pool are forked from it, compute in one thread, and are kept from
test to test. Ranks that do not answer in time, die or raise are killed with their pool, and the next call makes a new
one: a hang fails one test.
"""

import atexit
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 30.0
"""After so many seconds without an answer a call has failed."""


def run(size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """[what function(*args) returned on rank r], in a process group of `size` ranks with `torch.distributed` ready.

    function must be importable (a function of a test module); args and results are pickled. AssertionError with the
    ranks' tracebacks when one raises, dies or does not answer.
    """
    pools = _pools()
    if size not in pools:
        pools[size] = Pool(size)
    try:
        return pools[size].run(function, args, seconds)
    except BaseException:
        pools.pop(size).close()
        raise


class Pool:
    """`size` processes in one process group, each waiting at its end of a pipe for a function to call."""

    def __init__(self, size: int):
        context = _context()
        self.folder = tempfile.TemporaryDirectory()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.folder.name, rank, size), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], args: tuple, seconds: float) -> list[Any]:
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        answers: dict[int, Any] = {}
        failures: list[str] = []
        end = time.monotonic() + seconds
        while len(answers) + len(failures) < len(self.pipes):
            open_pipes = [pipe for rank, pipe in enumerate(self.pipes) if rank not in answers]
            ready = wait(open_pipes, max(0.0, end - time.monotonic()))
            for pipe in ready:
                rank = self.pipes.index(pipe)
                try:
                    done, answer = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    done, answer = False, "died"
                if done:
                    answers[rank] = answer
                else:
                    failures.append(f"rank {rank}: {answer}")
            if failures or not ready:  # the ranks of a failed one may wait for it for ever
                silent = sorted(set(range(len(self.pipes))) - set(answers))
                raise AssertionError("\n".join(failures) or f"ranks {silent} did not answer within {seconds:g} s")
        return [answers[rank] for rank in range(len(self.pipes))]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()


@cache
def _pools() -> dict[int, Pool]:
    """The pools of this process by size, closed at its end."""
    pools: dict[int, Pool] = {}
    atexit.register(lambda: [pool.close() for pool in pools.values()])
    return pools


def launch(size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[tuple[int, str]]:
    """(exit code, what was printed) of `size` fresh processes with torchrun's environment that call function(*args).

    As with torchrun, the store at which the ranks meet is not one of their own, and stays when one of them ends.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    environment |= {"LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / str(rank) for rank in range(size)]
        processes = []
        for rank, path in enumerate(printed):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(_context().Process(target=_launched, args=(path, own, function, args), daemon=True))
            processes[-1].start()
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        found = [path.read_text() for path in printed]
    assert not late, f"ranks {late} did not end within {seconds:g} s; what was printed: {found}"
    return [(process.exitcode, text) for process, text in zip(processes, found, strict=True)]


def _launched(path: Path, environment: dict[str, str], function: Callable[..., Any], args: tuple) -> None:
    """One fresh rank: what it prints goes to a file."""
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    torch.set_num_threads(1)
    function(*args)


@cache
def _context():
    """A fork server that has imported what takes long: torch, and Dynamo, which `patch` asks for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accel.distributed.job", "torch._dynamo", "pytest"])
    return context


def _serve(pipe: Connection, folder: str, rank: int, size: int) -> None:
    """One rank: join the process group, then call what arrives until the pipe closes."""
    torch.set_num_threads(1)
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))
