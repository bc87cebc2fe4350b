"""What a run does when memory ends in the middle of a forward, predictions notwithstanding.

First half as many frames are taken at once, down to one; then the plan is made again within less memory; then the run
ends with the number of frames that would fit. A policy that is out of memory by itself is answered by exact attention
before any of this (`accel.patch`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.memory import frames_that_fit, gib
from accel.models import VGGT
from accel.patch import out_of_memory
from accel.schedule import Schedule


class OutOfMemory(AccelError):
    """Nothing is left to try."""


T = TypeVar("T")
_LESS = 0.8
"""The share of what the plan was predicted to need that the next one may, and the frames that would fit."""


class Recovery:
    """Calls that run the model, again in less memory where they run out of it.

    schedule: the plan in force (None: none yet). replan(bytes) makes another within so much memory. say(text) is told
    each step; notes keeps them.
    """

    def __init__(
        self,
        model: VGGT,
        layout: TokenLayout,
        *,
        replan: Callable[[float], Schedule] | None = None,
        say: Callable[[str], object] = lambda text: None,
    ):
        self.model, self.layout, self.replan, self.say = model, layout, replan, say
        self.schedule: Schedule | None = None
        self.notes: list[str] = []

    def adopt(self, schedule: Schedule) -> None:
        """Make this the plan in force; a chunk that had to be made smaller stays so, in the plan too."""
        chosen = [n for n in (self.model.frames_per_chunk, schedule.frames_per_chunk) if n is not None]
        self.schedule = schedule
        if chosen:
            self._take(min(chosen))

    def _take(self, chunk: int) -> None:
        """So many frames at once, in the model and in the plan."""
        self.model.frames_per_chunk = chunk
        plan = self.schedule
        if plan is not None and plan.frames_per_chunk != chunk:
            reason = f"{plan.memory_reason}; in the run {chunk} at once".removeprefix("; ")
            self.schedule = replace(plan, frames_per_chunk=chunk, memory_reason=reason)

    def __call__(self, call: Callable[[], T], *, planned: bool = True) -> T:
        """call(), as often as it takes; planned: whether another plan would help it.

        OutOfMemory with the number of frames that would fit when nothing is left to try; other errors pass through.
        """
        while True:
            try:
                return call()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            self._retreat(reason, planned)  # outside the handler: the traceback no longer holds the tensors

    def _retreat(self, reason: str, planned: bool) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        chunk = min(self.model.chunk(self.layout), self.layout.frames)
        if chunk > 1:
            self._take(chunk // 2)
            self._note(f"Out of memory ({reason}): {chunk // 2} frames at once instead of {chunk}.")
            return
        old, new = self.schedule, None
        if planned and old is not None and self.replan is not None:
            try:
                new = self.replan(_LESS * old.predicted_memory[1])
            except AccelError:
                try:  # no plan needs so little: the one that needs least
                    new = self.replan(old.predicted_memory[0])
                except AccelError:
                    new = None
        if new is not None and new.predicted_memory[1] < old.predicted_memory[1]:
            self.adopt(new)
            before, after = (gib(s.predicted_memory[1]) for s in (old, new))
            self._note(f"Out of memory ({reason}): planned again, for {after} instead of {before}.")
            return
        raise OutOfMemory(self._message(reason))

    def _message(self, reason: str) -> str:
        config, frames = self.model.config, self.layout.frames
        weight = next(self.model.aggregator.parameters())
        sizes = {"itemsize": weight.element_size()}
        held = self.schedule.predicted_memory[1] if self.schedule is not None else None
        text = f"out of memory with {frames} frames, one at a time ({reason})"
        cheaper = ", or --dtype bfloat16" if sizes["itemsize"] > 2 else ""
        fitting = frames - 1
        if held is not None:
            fitting = min(frames_that_fit(config, self.layout, _LESS * held, **sizes), fitting)
        if fitting < 2:
            return f"{text}; not even two photographs would fit: give smaller images, use another machine{cheaper}"
        if held is None:
            return f"{text}; give fewer --frames, or smaller images"
        return f"{text}; about {fitting} would fit: give --frames {fitting}{cheaper}, or --no-dense --no-spectra"

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)
