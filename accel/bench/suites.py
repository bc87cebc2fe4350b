"""The suites: what each case runs, what it may take, and what is noted beside the times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attend import attend
from accel.bench.cases import PLANS, Case
from accel.bench.machine import MEMORY_BASIS
from accel.bench.reference import BASIS, reference_schedule
from accel.bench.settings import BLOCKS, DENSE, Setting, layer_settings, measured_sparsity, model_settings
from accel.bench.timing import SKIPPED, Trial, interleave, summary
from accel.bench.workspace import TRAINED, Workspace, synthetic_layer
from accel.cost import model_cost, predict_seconds
from accel.errors import AccelError
from accel.memory import peak_memory
from accel.outputs import output_difference
from accel.patch import patch, record
from accel.policies import BlockSparse, Context, Exact, Policy
from accel.schedule import Schedule
from accel.spectra import attention_spectrum
from accel.statistics import option_errors

SAMPLE = 512
SINGULAR_VALUES = 16
_SPECTRUM_FORWARDS = 12
_VARIANTS = ("attend", "attend, masses")


@dataclass
class Prepared:
    """A case made ready: the settings of its runs, what was planned for them, the seconds expected of each."""

    settings: dict[str, Setting]
    schedules: dict[str, Schedule]
    seconds: dict[str, float]

    def least(self, case: Case) -> float:
        """Seconds that one round takes, with the warm-up and, on a trained model, the errors."""
        total = sum(self.seconds.values())
        return total * (1 + case.warm_up + (case.model in TRAINED and case.suite == "model"))


def prepare(case: Case, space: Workspace) -> Prepared:
    """Settings and expected seconds of the runs that are not skipped; nothing heavy is done."""
    layout, config, device = case.layout, case.config, space.speeds(case)
    D, H = config.head_dim, config.num_heads
    if case.suite == "spectra":
        one = device.seconds(Exact().cost(layout, D, 1, itemsize=device.itemsize), "attention")
        seconds = {"forward": one, "spectrum": _SPECTRUM_FORWARDS * one}
        settings = {name: Setting((), "one head of a made-up scene") for name in case.runs}
        return Prepared(settings, {}, {name: seconds[name] for name in case.runs})
    schedules: dict[str, Schedule] = {}
    if case.suite == "kernels":
        known = layer_settings(layout, measured_sparsity())
        known |= {name: Setting((Exact(),), "exact, by accel.attend") for name in _VARIANTS}
        known[DENSE] = Setting((Exact(),), "exact, by F.scaled_dot_product_attention")
    else:
        known = model_settings(layout, config.depth, measured_sparsity())
        known[DENSE] = Setting((Exact(),) * config.depth, "exact in every layer")
        for name in (name for name in case.runs if name in PLANS):
            schedules[name] = reference_schedule(space.profile(), config, layout, PLANS[name], device)
            known[name] = Setting(schedules[name].policies, f"{BASIS}, output difference {PLANS[name]:g} predicted")
    settings = {name: _compiled(known[name], case, space) for name in case.runs}
    seconds = {}
    for name, setting in settings.items():
        if setting.reason:
            continue
        if case.suite == "kernels":
            seconds[name] = device.attention_seconds(setting.policies[0], layout, D, H)
        else:
            seconds[name] = predict_seconds(config, layout, device, setting.policies)["total"]
    return Prepared(settings, schedules, seconds)


def _compiled(setting: Setting, case: Case, space: Workspace) -> Setting:
    """The setting, marked where it needs a compiler that is not there."""
    if setting.reason or not any(isinstance(policy, BlockSparse) for policy in setting.policies):
        return setting
    config = case.config
    reason = space.machine.lacks_compiler(getattr(torch, case.dtype), config.num_heads, config.head_dim, BLOCKS)
    return Setting(setting.policies, setting.basis, reason)


@torch.no_grad()
def run_case(case: Case, ready: Prepared, space: Workspace, deadline: float) -> dict[str, Any]:
    """Measure a case: {"rows": one per run, "order": of the calls, ...}, JSON values.

    No round is begun that would end after `deadline`. A run that fails is a row with its status and reason.
    """
    make = {"kernels": _layer_trials, "spectra": _spectrum_trials}.get(case.suite, _model_trials)
    trials = make(case, ready, space)
    order = interleave(
        trials,
        space.machine,
        rounds=case.rounds,
        deadline=deadline,
        once=case.runs[0] if case.once else None,
        warm_up=case.warm_up,
    )
    by_name = {trial.name: trial for trial in trials}
    rows = [_row(name, by_name.get(name), by_name.get(case.runs[0]), ready) for name in case.runs]
    return {"rows": rows, "order": order, "memory_basis": MEMORY_BASIS[space.machine.device.type]}


def _row(name: str, trial: Trial | None, reference: Trial | None, ready: Prepared) -> dict[str, Any]:
    setting = ready.settings[name]
    row = {"run": name, "basis": setting.basis, "predicted_seconds": ready.seconds.get(name)}
    if trial is None:
        return row | {"status": SKIPPED, "reason": setting.reason} | summary(Trial(name, lambda: None), None)
    row |= {"status": trial.status, "reason": trial.reason, "peak_bytes": trial.peak}
    row |= {"all_seconds": [x for _, x in trial.seconds]} | summary(trial, reference) | trial.facts
    if row.get("flops") and row["seconds"]:
        row["tflops"] = row["flops"] / row["seconds"] * 1e-12
    return row


def _layer_trials(case: Case, ready: Prepared, space: Workspace) -> list[Trial]:
    """One layer's attention under every setting; errors on sampled queries against float32."""
    layout, config, device = case.layout, case.config, space.machine.device
    H, D, dtype = config.num_heads, config.head_dim, getattr(torch, case.dtype)
    q, k, v = synthetic_layer(layout, H, D, dtype, device)
    generator = torch.Generator().manual_seed(1)
    index = torch.randperm(layout.tokens, generator=generator)[:SAMPLE].sort().values.to(device)
    exact = attend(*(x.float() for x in (q[:, :, index], k, v)))[0]
    masses = torch.zeros(1, H, layout.tokens, device=device)
    context = Context(tokens=k.transpose(1, 2).flatten(2))  # of as many channels as a model's tokens
    testbed = measured_sparsity()["errors"]

    def inspect(name: str) -> Callable[[Tensor], dict[str, Any]]:
        def facts(out: Tensor) -> dict[str, Any]:
            wrong = (out[:, :, index].float() - exact).square().mean() / exact.square().mean()
            policy = ready.settings[name].policies[0]
            cost = policy.cost(layout, D, H, itemsize=dtype.itemsize)
            here = testbed.get(name)
            return {
                "error": wrong.sqrt().item(),
                "error_basis": f"relative rms on {len(index)} queries of a made-up scene, against float32",
                "testbed_error": None if here is None else {"median": median(here), "worst": max(here)},
                "policy": policy.to_dict(),
                "keys_per_query": policy.keys_per_query(layout),
                "flops": cost.flops,
                "predicted_bytes": policy.workspace(layout, D, H, itemsize=dtype.itemsize),
            }

        return facts

    calls: dict[str, Callable[[], Tensor]] = {
        DENSE: lambda: scaled_dot_product_attention(q, k, v),
        "attend": lambda: attend(q, k, v)[0],
        "attend, masses": lambda: attend(q, k, v, log_mass=masses)[0],
    }
    for name, setting in ready.settings.items():
        if name not in calls:
            policy = setting.policies[0]
            calls[name] = lambda policy=policy: policy.attend(q, k, v, layout, context=context)
    return [Trial(name, calls[name], inspect(name)) for name in ready.seconds]


def _model_trials(case: Case, ready: Prepared, space: Workspace) -> list[Trial]:
    """The whole model under every schedule; on a trained one also what that does to attention and outputs."""
    model, images, layout = space.model(case), space.images(case), case.layout
    if model.layout(images) != layout:
        raise AccelError(f"the case has {layout}, its images {model.layout(images)}; give a grid that the model has")
    schedules = {name: SimpleNamespace(layout=layout, policies=ready.settings[name].policies) for name in ready.seconds}
    errors, why = _attention_errors(case, schedules, space)
    reference: dict[str, Tensor] = {}

    def forward(name: str) -> dict[str, Tensor]:
        if name == DENSE:
            return model(images)
        with patch(model, schedules[name]) as applied:
            found = model(images)
        if applied.fallbacks:
            layers = sorted(applied.fallbacks)
            raise MemoryError(f"the policy ran out of memory in layers {layers}: {applied.fallbacks[layers[0]][0]}")
        return found

    def inspect(name: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
        def facts(out: dict[str, Tensor]) -> dict[str, Any]:
            policies = ready.settings[name].policies
            found: dict[str, Any] = {
                "policies": [policy.to_dict() for policy in policies],
                "keys_per_query": sum(policy.keys_per_query(layout) for policy in policies) / len(policies),
                "flops": model_cost(case.config, layout, policies).total.flops,
                "predicted_bytes": predicted_bytes(case, policies, space.machine.device),
                "error": None,
                "error_basis": why,
            }
            if name in ready.schedules:
                found["predicted_error"] = ready.schedules[name].predicted_total
            if errors is not None:
                mean_square = sum(x * x for x in errors[name]) / len(errors[name])
                found |= {"layer_errors": errors[name], "error": mean_square**0.5}
                if name == DENSE:
                    reference.update(out)
                if reference:
                    found["output_difference"] = output_difference(reference, out)["total"]
            return found

        return facts

    model(images[:, :1])  # kernels are chosen and loaded before the first time is taken
    return [Trial(name, lambda name=name: forward(name), inspect(name)) for name in ready.seconds]


def predicted_bytes(case: Case, policies: Sequence[Policy], device: torch.device) -> float:
    """Peak memory of a forward as `PeakMemory` counts it: on a CPU without weights and images, which were there."""
    memory = peak_memory(case.config, case.layout, policies, itemsize=getattr(torch, case.dtype).itemsize)
    return memory.peak if device.type == "cuda" else memory.peak - memory.weights - memory.images


def _attention_errors(
    case: Case, schedules: dict[str, Any], space: Workspace
) -> tuple[dict[str, list[float]] | None, str]:
    """Relative rms error of each layer's attention output on the exact model's q, k, v, or None; and the basis."""
    if case.model not in TRAINED:
        return None, "random weights: no accuracy to measure"
    if case.suite != "model":
        return None, "see the suite model"
    if case.frames > space.scene_frames():
        return None, f"the bundled scene has {space.scene_frames()} frames; repeated ones would merge without error"
    model, images = space.model(case), space.images(case)
    found: dict[str, list[float]] = {name: [] for name in schedules}

    def measure(context: Context, q: Tensor, k: Tensor, v: Tensor) -> None:
        policies = [schedule.policies[context.layer] for schedule in schedules.values()]
        errors = option_errors(q, k, v, case.layout, policies, context=context)
        for values, error in zip(found.values(), errors, strict=True):
            values.append(error)

    with record(model, measure):
        model(images)
    return found, "rms over layers of the relative rms error of the attention output, bundled scene"


def _spectrum_trials(case: Case, ready: Prepared, space: Workspace) -> list[Trial]:
    """The leading singular values of one head beside one attention forward of it."""
    layout, config = case.layout, case.config
    q, k, v = synthetic_layer(layout, 1, config.head_dim, getattr(torch, case.dtype), space.machine.device)

    def spectrum() -> Any:
        generator = torch.Generator().manual_seed(0)
        return attention_spectrum(
            q[0], k[0], generator=generator, count=SINGULAR_VALUES, ranks=False, method="matrix-free"
        )

    def facts(found: Any) -> dict[str, Any]:
        s, se = (found[name].values[0] for name in ("singular_value", "singular_value_se"))
        return {
            "forwards": float(found.attention_forwards),
            "singular_values": s.tolist(),
            "error": float((se / s).max()),
            "error_basis": "relative, what the last Krylov step added: the declared error of the singular values",
            "flops": float(found.attention_forwards) * Exact().cost(layout, config.head_dim, 1).flops,
        }

    def plain(out: Tensor) -> dict[str, Any]:
        return {"flops": Exact().cost(layout, config.head_dim, 1).flops}

    calls = {
        "forward": Trial("forward", lambda: scaled_dot_product_attention(q, k, v), plain),
        "spectrum": Trial("spectrum", spectrum, facts),
    }
    return [calls[name] for name in ready.seconds]
