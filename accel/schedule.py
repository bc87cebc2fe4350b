"""Which policy runs in which layer, and why: a `Schedule`, and `plan`, which finds the best one.

`plan` solves, exactly, for one option o(l) per layer,

    minimise  sum_l s_l,o(l) e_l,o(l)    subject to   time(o) <= time(dense) / budget        (or the other way round)

with e the predicted relative error of the layer's attention output and s the sensitivity of the model's outputs to it.
That errors of layers add is an assumption; published measurements on such models find it with r >= .97.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp

from accel.cost import Device, model_cost
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.memory import gib, peak_memory, within
from accel.options import strided
from accel.policies import Exact, Policy, policy_from_dict
from accel.predictors import Predictor, own_mass
from accel.profile import Profile

_MEMORY_FIELDS = {"frames_per_chunk", "predicted_memory", "memory_reason"}


@dataclass(frozen=True)
class Schedule:
    """A policy per global layer with what was predicted of it; `patch(model, schedule)` applies it.

    predicted_error: relative rms error of each layer's attention output; sensitivity: output difference per such error;
    seconds_saved per layer; predicted_seconds of a forward, dense and planned (None where no device was given).
    frames_per_chunk: what the model is to take at once (None: its default); predicted_memory: peak bytes of a forward,
    dense and planned; memory_reason: why these, in words.
    """

    layout: TokenLayout
    policies: tuple[Policy, ...]
    reasons: tuple[str, ...]
    predicted_error: tuple[float, ...]
    sensitivity: tuple[float, ...]
    seconds_saved: tuple[float, ...]
    predicted_seconds: tuple[float, float] | None = None
    predictor: str = "none"
    device: Device | None = None
    frames_per_chunk: int | None = None
    predicted_memory: tuple[float, float] | None = None
    memory_reason: str = ""

    def __post_init__(self) -> None:
        for name in ("policies", "reasons", "predicted_error", "sensitivity", "seconds_saved"):
            value = tuple(getattr(self, name))
            if len(value) != len(self.policies):
                raise AccelError(f"Schedule.{name} has {len(value)} entries for {len(self.policies)} layers")
            object.__setattr__(self, name, value)
        for name in ("predicted_error", "sensitivity", "seconds_saved"):
            if not all(_finite(x) for x in getattr(self, name)):
                raise AccelError(f"Schedule.{name}={getattr(self, name)} must be finite numbers; make one by plan(...)")
        seconds = self.predicted_seconds
        if seconds is not None and not (len(seconds) == 2 and all(_finite(x) and x > 0 for x in seconds)):
            raise AccelError(f"Schedule.predicted_seconds={seconds} must be two positive numbers, dense and planned")
        memory, chunk = self.predicted_memory, self.frames_per_chunk
        if memory is not None and not (len(memory) == 2 and all(_finite(x) and x > 0 for x in memory)):
            raise AccelError(f"Schedule.predicted_memory={memory} must be two positive numbers, dense and planned")
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise AccelError(f"Schedule.frames_per_chunk={chunk!r} must be an integer of at least 1, or None")
        for policy in self.policies:
            policy.check(self.layout)

    @property
    def layers(self) -> int:
        return len(self.policies)

    @property
    def predicted_output_error(self) -> tuple[float, ...]:
        """Predicted output difference that each layer adds."""
        return tuple(s * e for s, e in zip(self.sensitivity, self.predicted_error, strict=True))

    @property
    def predicted_total(self) -> float:
        """Predicted output difference of the whole schedule: the sum over layers."""
        return math.fsum(self.predicted_output_error)

    @property
    def predicted_speedup(self) -> float:
        """Dense over planned seconds of a forward; 1 where no device was given."""
        return 1.0 if self.predicted_seconds is None else self.predicted_seconds[0] / self.predicted_seconds[1]

    def table(self) -> Table:
        """The schedule as a rich table."""
        table = Table(title=f"schedule for {self.layout.frames} frames, N={self.layout.tokens} tokens")
        table.add_column("layer", justify="right")
        table.add_column("policy")
        for name in ("keys per query", "attention error", "sensitivity", "output error", "saved"):
            table.add_column(name, justify="right")
        table.add_column("reason")
        rows = zip(self.policies, self.predicted_error, self.sensitivity, self.predicted_output_error, strict=True)
        for layer, (policy, error, sensitivity, output) in enumerate(rows):
            table.add_row(
                str(layer),
                policy.describe(),
                f"{policy.keys_per_query(self.layout):.0f}",
                f"{error:.3f}",
                f"{sensitivity:.3f}",
                f"{output:.4f}",
                _duration(self.seconds_saved[layer]),
                self.reasons[layer],
            )
        table.caption = self.summary()
        return table

    def summary(self) -> str:
        """One line: predicted error, times, and by what; predicted memory and the chunk chosen for it."""
        text = f"predicted output error {self.predicted_total:.4f}, predictor: {self.predictor}"
        if self.predicted_seconds is not None:
            dense, planned = self.predicted_seconds
            device = "" if self.device is None else f" on {self.device.name}"
            text += f"; {_duration(dense)} -> {_duration(planned)} ({self.predicted_speedup:.2f}x){device}"
        if self.predicted_memory is not None:
            text += f"; peak {gib(self.predicted_memory[0])} -> {gib(self.predicted_memory[1])}"
        return f"{text}; {self.memory_reason}" if self.memory_reason else text

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=160).print(self.table())
        return text.getvalue()

    def to_json(self) -> str:
        data: dict[str, Any] = {
            "layout": self.layout.to_dict(),
            "policies": [policy.to_dict() for policy in self.policies],
            "reasons": self.reasons,
            "predicted_error": self.predicted_error,
            "sensitivity": self.sensitivity,
            "seconds_saved": self.seconds_saved,
            "predicted_seconds": self.predicted_seconds,
            "predictor": self.predictor,
            "device": None if self.device is None else self.device.to_dict(),
            "frames_per_chunk": self.frames_per_chunk,
            "predicted_memory": self.predicted_memory,
            "memory_reason": self.memory_reason,
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The inverse of `to_json`; files of earlier versions say nothing of memory."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AccelError(f"the schedule is not JSON ({error}); write one by Schedule.save") from error
        names = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or not names - _MEMORY_FIELDS <= set(data) <= names:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise AccelError(f"a schedule needs exactly the fields {sorted(names)}, got {got}")
        seconds, device, memory = data["predicted_seconds"], data["device"], data.get("predicted_memory")
        try:
            return cls(
                **data
                | {
                    "layout": TokenLayout.from_dict(data["layout"]),
                    "policies": tuple(policy_from_dict(d) for d in data["policies"]),
                    "predicted_seconds": None if seconds is None else tuple(seconds),
                    "device": None if device is None else Device.from_dict(device),
                    "predicted_memory": None if memory is None else tuple(memory),
                }
            )
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise AccelError(f"a value of the schedule has a wrong type ({error}); use Schedule.save") from error

    def save(self, path: Path | str) -> None:
        """Write the JSON file, whole or not at all."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Schedule:
        """The inverse of `save`."""
        path = Path(path)
        if not path.is_file():
            raise AccelError(f"no schedule at {path}; make one by plan(...).save(path)")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise AccelError(f"{path} is not a schedule (not text); give a file written by Schedule.save") from error
        except AccelError as error:
            raise AccelError(f"{path}: {error}") from error


def exact_schedule(layout: TokenLayout, layers: int) -> Schedule:
    """Exact attention in every layer."""
    zeros = (0.0,) * layers
    return Schedule(layout, (Exact(),) * layers, ("exact: no plan was made",) * layers, zeros, zeros, zeros)


def plan(
    profile: Profile,
    layout: TokenLayout,
    *,
    predictor: Predictor,
    budget: float | None = None,
    tolerance: float | None = None,
    device: Device,
    options: Sequence[Policy] | None = None,
    memory: float | None = None,
    held: float = 0.0,
) -> Schedule:
    """The best schedule at `layout.frames`: least predicted output error within a time, or least time within an error.

    Exactly one of budget, the speed-up of the whole forward (2.0: twice as fast), and tolerance, the predicted total
    output difference (`accel.outputs`), is given. options default to those probed, temporal strides
    also as longer ones where the predictor carries them (`accel.options.strided`); those the layout does not allow are
    left out. The optimum of the model is exact (mixed-integer program); its assumptions are the predictor's, additivity
    over layers, and the cost model's.

    memory: bytes that a forward may use at its peak, weights, images and `held` per frame included. The peak is the
    maximum over stages that run one after another, so an option is allowed in a layer exactly when its own stage fits,
    and the frames taken at once are the model's default or the largest of its halves that fits (`accel.memory`).

    AccelError: neither or both given, out of range, or unreachable; more frames than memory holds.
    """
    if (budget is None) == (tolerance is None):
        raise AccelError(f"{budget=} and {tolerance=}: give exactly one of them")
    if budget is not None and not (math.isfinite(budget) and budget >= 1):
        raise AccelError(f"budget={budget} is a speed-up; give a number of at least 1, e.g. 2.0")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise AccelError(f"tolerance={tolerance} is an output difference; give a number of at least 0, e.g. 0.02")
    if layout.frames < 2:
        raise AccelError("1 frame has no global attention to shorten; give at least 2")
    if memory is not None and not (math.isfinite(memory) and memory > 0):
        raise AccelError(f"memory={memory} is a number of bytes; give a positive one, e.g. 12e9")
    profile.check(layout)
    if options is None:
        longer = getattr(predictor, "carries", False)
        options = strided(profile.options, layout) if longer else profile.options
    options = _allowed(options, layout)
    errors = np.asarray(predictor(profile, layout, options), dtype=np.float64)
    sensitivity = profile.sensitivity(options)
    damage = errors * sensitivity
    if errors.shape != (profile.layers, len(options)) or not np.isfinite(damage).all() or (damage < 0).any():
        raise AccelError(f"predictor {predictor.name!r} gave {errors.shape} or values that are not errors: {errors}")

    config, itemsize = profile.config, device.itemsize
    cost = model_cost(config, layout, itemsize=itemsize)
    dense = cost.seconds(device)["total"]
    chunk, allowed, why = within(memory, config, layout, options, itemsize, held)
    sizes = (layout, config.head_dim, config.num_heads)
    each = np.array([device.attention_seconds(policy, *sizes) for policy in options])
    exact = device.seconds(cost.global_attention[0], "attention")
    fixed = dense - exact * profile.layers
    times = np.tile(each / dense, (profile.layers, 1))
    if budget is not None:
        best = 1 / (fixed / dense + times.min(1, where=allowed, initial=np.inf).sum())
        if best < budget * (1 - 1e-9):
            raise AccelError(
                f"budget={budget:g} cannot be met at {layout.frames} frames: global attention takes "
                f"{exact * profile.layers / dense:.0%} of the forward on {device.name}, so at best {best:.2f}x; lower "
                f"the budget, or give more frames (the share grows with their number)"
            )
        chosen = _solve(damage, times, 1 / budget - fixed / dense, allowed)
    else:
        least = damage.min(1, where=allowed, initial=np.inf).sum()
        if least > tolerance:
            raise AccelError(f"tolerance={tolerance:g} is below the least predicted error {least:.3g}; add Exact()")
        chosen = _solve(times, damage, tolerance, allowed)

    rows = np.arange(profile.layers)
    policies = tuple(options[j] for j in chosen)
    planned = fixed + each[chosen].sum()
    sizes = {"frames_per_chunk": chunk, "itemsize": itemsize}
    peaks = (peak_memory(config, layout, of, **sizes).peak for of in (None, policies))
    return Schedule(
        layout=layout,
        policies=policies,
        reasons=_reasons(profile, layout, policies, errors[rows, chosen], damage, each / exact, options),
        predicted_error=tuple(errors[rows, chosen].tolist()),
        sensitivity=tuple(sensitivity[rows, chosen].tolist()),
        seconds_saved=tuple((exact - each[chosen]).tolist()),
        predicted_seconds=(float(dense), float(planned)),
        predictor=predictor.name,
        device=device,
        frames_per_chunk=chunk,
        predicted_memory=tuple(peaks),
        memory_reason=why,
    )


def _finite(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)


def _allowed(options: Sequence[Policy], layout: TokenLayout) -> tuple[Policy, ...]:
    kept, why = [], "none was given"
    for policy in options:
        try:
            policy.check(layout)
            kept.append(policy)
        except AccelError as error:
            why = str(error)
    if not kept:
        raise AccelError(f"no option can be applied to {layout}: {why}; add Exact()")
    return tuple(kept)


def _solve(objective: np.ndarray, limited: np.ndarray, limit: float, allowed: np.ndarray) -> np.ndarray:
    """One allowed option per layer with the least sum of objective and sum limited <= limit, (layer,) indices.

    Exact up to the solver's feasibility tolerance. Of equal objectives the smaller sum of `limited` is preferred.
    """
    layers, count = objective.shape
    scale = max(float(objective.max()), 1e-300)
    bound = max(float(limited.max()), 1e-300)
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(count)), 1, 1)
    within = LinearConstraint(limited.ravel()[None] / bound, -np.inf, limit / bound * (1 + 1e-12) + 1e-12)
    values = objective / scale + 1e-9 * limited / bound
    # zero gap: instances are small (layers x options), so the optimum is proven at once
    found = milp(
        values.ravel(),
        constraints=[one_each, within],
        bounds=Bounds(0, allowed.ravel().astype(float)),
        integrality=np.ones(layers * count),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise AccelError(f"no schedule satisfies the limit {limit:g} ({found.message}); loosen it")
    return found.x.reshape(layers, count).argmax(1)


def _reasons(
    profile: Profile,
    layout: TokenLayout,
    policies: Sequence[Policy],
    errors: np.ndarray,
    damage: np.ndarray,
    time: np.ndarray,
    options: Sequence[Policy],
) -> tuple[str, ...]:
    """Why each layer has its policy, in words with numbers; time: of each option, over that of exact attention."""
    own = own_mass(profile, layout)
    sensitivity = profile.data["sensitivity"].values.mean(1)
    median = max(float(np.median(sensitivity)), 1e-12)
    reasons = []
    for layer, policy in enumerate(policies):
        ratio = sensitivity[layer] / median
        level = f"{ratio:.1f}x the median sensitivity"
        if policy.name == "exact":
            cheaper = [j for j, p in enumerate(options) if p.name != "exact"]
            if ratio >= 1.2:
                text = f"{ratio:.1f}x more sensitive than the median layer"
            elif cheaper:
                least = damage[layer, cheaper].min()
                text = f"the gentlest shortcut would add {least:.2g} to the output error"
            else:
                text = "no other option was allowed"
        elif policy.name == "frame":
            text = f"{own[layer]:.0%} of the mass is in the own frame, attention error {errors[layer]:.1%}, {level}"
        elif policy.name == "query_merge":
            rows = policy.kept_queries(layout) / layout.tokens
            text = f"{rows:.0%} of the queries give attention error {errors[layer]:.1%}, {level}"
        elif policy.name == "merge":
            rows = policy.kept_tokens(layout) / layout.tokens
            text = f"{rows:.0%} of the tokens, merged, give attention error {errors[layer]:.1%}, {level}"
        else:
            kept = policy.keys_per_query(layout) / layout.tokens
            text = f"{kept:.0%} of the keys give attention error {errors[layer]:.1%}, {level}"
        if policy.name != "exact":
            taken = time[list(options).index(policy)]
            change = f"saves {1 - taken:.0%} of" if taken <= 1 else f"adds {taken - 1:.0%} to"
            text += f", {change} the layer's attention time"
        reasons.append(f"{policy.name}: {text}")
    return tuple(reasons)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1e3:.1f} ms"
