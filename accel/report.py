"""What a run leaves behind: its numbers as JSON, the page that shows them, and the files.

`summarise` makes results.json; `render` puts those numbers and the figures on one self-contained page.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from accel import figures
from accel.policies import Exact

if TYPE_CHECKING:
    from accel.run import RunResult

RANKS = {
    "effective_rank": ("effective rank", "directions"),
    "stable_rank": ("stable rank", "directions"),
    "entropy": ("entropy of a row", "nats"),
}
FRAMES_SHOWN, THUMBNAILS_SHOWN, POINTS_SHOWN, SPECTRA_SHOWN = 6, 24, 6000, 6


def summarise(run: RunResult) -> dict[str, Any]:
    """The numbers of a run as JSON values: non-finite ones and absent parts are None."""
    images, layout, times, plan = run.images, run.layout, run.times, run.schedule
    height, width = images.tensor.shape[-2:]
    probed, spectrum_tokens, notes = run.profile.layout.tokens, run.profile.data.attrs["spectrum_tokens"], run.notes
    if spectrum_tokens < probed:
        notes += (f"The probe's own ranks and entropy are those of {spectrum_tokens} of its {probed} tokens.",)
    return _json(
        {
            "model": {
                "weights": run.settings.weights,
                "parameters": run.parameters,
                "layers": plan.layers,
                "heads": run.config.num_heads,
                "head_dim": run.config.head_dim,
            },
            "input": {
                "frames": len(images),
                "names": images.names,
                "original_size": images.original_size,
                "size": (height, width),
                "tokens": layout.tokens,
                "tokens_per_frame": layout.tokens_per_frame,
            },
            "request": {"budget": run.settings.budget, "tolerance": run.settings.tolerance, "seed": run.settings.seed},
            "probe": {
                "frames": run.profile.layout.frames,
                "tokens": run.profile.layout.tokens,
                "spectrum_tokens": spectrum_tokens,
            },
            "time": {
                "dense_s": times.get("dense"),
                "accelerated_s": times["planned"],
                "ratio": times["dense"] / times["planned"] if "dense" in times else None,
                "planned_dense_s": plan.predicted_seconds[0],
                "planned_s": plan.predicted_seconds[1],
                "planned_ratio": plan.predicted_speedup,
                "repeats": times["repeats"],
                "stages_s": run.stages,
                "reused": run.reused,
            },
            "memory": {f: getattr(plan, f) for f in ("predicted_memory", "frames_per_chunk", "memory_reason")},
            "output_difference": run.difference,
            "predicted_difference": plan.predicted_total,
            "layers": layer_rows(run),
            "prediction": prediction_quality(run),
            "spectra_measured": run.measured is not None,
            "spectra_k": next((data.sizes["k"] for data in (run.measured, run.predicted) if data is not None), None),
            "depth_exponent": None if run.ranks is None else float(run.ranks["depth_exponent"]),
            "power_law": None if run.ranks is None else run.ranks.attrs["power_law"],
            "truth": truth_errors(run),
            "notes": notes,
            "machine": machine(run.device),
            "provenance": run.provenance,
        }
    )


def layer_rows(run: RunResult) -> list[dict[str, Any]]:
    """One row per layer: the policy and why, its time and error, and the rank measures; means over heads."""
    plan, rows = run.schedule, []
    exact = Exact().cost(run.layout, run.config.head_dim, run.config.num_heads, itemsize=plan.device.itemsize)
    dense_s = plan.device.seconds(exact, "attention")
    for layer, policy in enumerate(plan.policies):
        found: dict[str, Any] = {
            "layer": layer,
            "policy": policy.to_dict(),
            "description": policy.describe(),
            "reason": plan.reasons[layer].removeprefix(f"{policy.name}: "),
            "keys_per_query": policy.keys_per_query(run.layout),
            "dense_s": dense_s,
            "planned_s": dense_s - plan.seconds_saved[layer],
            "sensitivity": plan.sensitivity[layer],
            "predicted_error": plan.predicted_error[layer],
            "measured_error": None if run.validation is None else float(run.validation["measured_error"][layer]),
            "predicted_output_error": plan.predicted_output_error[layer],
        }
        for name in RANKS:
            found[f"{name}_probe"] = float(run.profile.data[name][layer].mean())
            found[f"{name}_predicted"] = None if run.predicted is None else float(run.predicted[name][layer].mean())
            found[f"{name}_measured"] = found[f"{name}_measured_se"] = None
            if run.measured is not None:
                errors = run.measured[f"{name}_se"][layer].values
                found[f"{name}_measured"] = float(run.measured[name][layer].mean())
                found[f"{name}_measured_se"] = float(np.sqrt((errors**2).sum()) / errors.size)
        rows.append(found)
    return rows


def prediction_quality(run: RunResult) -> dict[str, dict[str, float]] | None:
    """Median over layers and heads of |predicted - measured|, relative for ranks, in nats for the entropy."""
    if run.predicted is None or run.measured is None:
        return None
    found = {}
    for name in RANKS:
        true, guess, same = (d[name].values for d in (run.measured, run.predicted, run.profile.data))
        unit = np.ones_like(true) if name == "entropy" else true
        found[name] = {
            "prediction": float(np.median(np.abs(guess - true) / unit)),
            "nothing_changes": float(np.median(np.abs(same - true) / unit)),
        }
    return found


def truth_errors(run: RunResult) -> dict[str, dict[str, float]] | None:
    """Pose and depth errors of each prediction where the scene's truth is known.

    Relative poses over all pairs: rotation and translation direction in degrees (mean), AUC@30 as in VGGT: the mean
    over k = 1 .. 30 of the share of pairs with both errors below k; the sign of the translation counts, which is
    stricter than folding angles above 90 degrees. Depth: mean |d - d0|/d0 after scaling by the median of d0/d, at the
    truth's resolution (nearest pixel).
    """
    if run.truth is None:
        return None
    found = {}
    for name, prediction in (("dense", run.dense), ("accelerated", run.accelerated)):
        if prediction is None:
            continue
        turn, direction = _pose_errors(prediction["extrinsics"], run.truth["extrinsics"])
        worst = np.maximum(turn, direction)
        values = {
            "rotation_deg": turn.mean(),
            "translation_deg": direction.mean(),
            "auc_30": np.mean([(worst < k).mean() for k in range(1, 31)]),
        }
        true = run.truth["depth"]
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(int)
            for small, large in zip(true.shape[1:], prediction["depth"].shape[1:], strict=True)
        )
        depth = prediction["depth"][:, rows][:, :, columns]
        known = np.isfinite(true) & (true > 0)
        depth, true = depth[known], true[known]
        values["depth_abs_rel"] = np.mean(np.abs(depth * np.median(true / depth) - true) / true)
        found[name] = {key: float(value) for key, value in values.items()}
    return found


def _pose_errors(estimate: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees between relative rotations and between relative translations, over all pairs of frames."""
    i, j = np.triu_indices(len(true), 1)

    def relative(e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rotation = e[i, :, :3] @ e[j, :, :3].transpose(0, 2, 1)
        return rotation, e[i, :, 3] - np.einsum("nij,nj->ni", rotation, e[j, :, 3])

    (r, t), (r0, t0) = relative(np.asarray(estimate, np.float64)), relative(np.asarray(true, np.float64))
    # chord |R - R0| = sqrt(8) sin(angle / 2): accurate near 0
    turn = 2 * np.arcsin(np.clip(np.linalg.norm(r - r0, axis=(1, 2)) / math.sqrt(8), 0, 1))
    direction = np.arctan2(np.linalg.norm(np.cross(t, t0), axis=-1), (t * t0).sum(-1))
    still = np.minimum(np.linalg.norm(t, axis=-1), np.linalg.norm(t0, axis=-1)) < 1e-6
    return np.degrees(turn), np.where(still, 90.0, np.degrees(direction))


def machine(device: str) -> dict[str, Any]:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    if device.startswith("cuda"):
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return {
        "device": device,
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _json(value: Any) -> Any:
    """JSON values: tuples to lists, numpy to Python, non-finite numbers to None."""
    if isinstance(value, dict):
        return {str(key): _json(x) for key, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_json(x) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if decimals < 8 else f"{value:.{digits - 1}e}"


def percent(value: float | None) -> str:
    """A share in percent to two or three digits."""
    return "–" if value is None else f"{number(100 * value, 2 if abs(value) < 0.1 else 3)} %"


def thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def times(ratio: float) -> str:
    """A speed-up, such as 2.13×."""
    return f"{ratio:.2f}×"


def short(description: str) -> str:
    """The first part of a policy's description."""
    return description.split(",")[0]


def duration(seconds: float) -> str:
    """Seconds, in milliseconds below one."""
    return f"{number(seconds)} s" if abs(seconds) >= 1 else f"{number(1e3 * seconds, 2)} ms"


def render(run: RunResult) -> str:
    """The page as HTML text: no file, script, font or address outside itself."""
    environment = Environment(loader=PackageLoader("accel"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=number, percent=percent, thousands=thousands, duration=duration, short=short, times=times
    )
    page = environment.get_template("report.html.j2")
    return page.render(r=run.results, f=draw(run), ranks=RANKS)


def draw(run: RunResult) -> dict[str, Any]:
    """The figures of the page, as SVG markup and data URIs."""
    layers, results = run.results["layers"], run.results
    spectra = run.predicted if run.predicted is not None else run.measured
    shown = [] if spectra is None else _spread(spectra.sizes["layer"], SPECTRA_SHOWN)
    found = {
        "thumbnails": [
            (run.images.names[i], figures.thumbnail(run.images.thumbnails[i]))
            for i in _spread(len(run.images), THUMBNAILS_SHOWN)
        ],
        "ranks": [
            figures.layer_lines(
                title,
                unit,
                predicted=None if run.predicted is None else run.predicted[name].values,
                measured=None if run.measured is None else run.measured[name].values,
                unchanged=run.profile.data[name].values,
                log=name != "entropy",
            )
            for name, (title, unit) in RANKS.items()
        ],
        "spectra": [
            figures.spectrum(
                layer,
                predicted=None if run.predicted is None else run.predicted["singular_value"].values[layer],
                measured=None if run.measured is None else run.measured["singular_value"].values[layer],
            )
            for layer in shown
        ],
        "errors": figures.errors(
            _column(layers, "predicted_error"), None if run.validation is None else _column(layers, "measured_error")
        ),
        "times": figures.bars(results["time"]),
        "top_view": _top_view(run),
        **_depth(run),
    }
    return {name: _safe(value) for name, value in found.items()}


def _safe(value: Any) -> Any:
    """SVG marked as markup, so that the template does not escape it."""
    if isinstance(value, list):
        return [_safe(x) for x in value]
    return Markup(value) if isinstance(value, str) and value.startswith("<svg") else value


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread, ends included."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _column(layers: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row[name] is None else row[name] for row in layers], dtype=float)


def _top_view(run: RunResult) -> str:
    cameras = [("accelerated", run.accelerated["extrinsics"], figures.FAST)]
    if run.dense is not None:
        cameras.insert(0, ("dense", run.dense["extrinsics"], figures.DENSE))
    points = run.accelerated["world_points"].reshape(-1, 3)
    confidence = run.accelerated["world_points_conf"].reshape(-1)
    colours = run.images.tensor[0].permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    kept = np.flatnonzero(np.isfinite(points).all(-1) & (confidence >= np.nanmedian(confidence)))
    kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), POINTS_SHOWN)).astype(int)] if len(kept) else kept
    return figures.top_view(cameras, points[kept], colours[kept])


def _depth(run: RunResult) -> dict[str, Any]:
    """Depth maps of some frames on one logarithmic colour scale, and their relative difference."""
    shown = _spread(len(run.images), FRAMES_SHOWN)
    reference = run.accelerated if run.dense is None else run.dense
    low, high = np.nanquantile(reference["depth"][shown], [0.01, 0.99])
    low = max(low, 1e-6)
    limits = np.log([low, max(high, 1.001 * low)])
    difference, top = None, 0.05
    if run.dense is not None:
        difference = np.abs(run.accelerated["depth"] - run.dense["depth"]) / np.maximum(run.dense["depth"], 1e-12)
        top = float(np.clip(np.nanquantile(difference[shown], 0.98), 1e-3, 1.0))
    scale = 1.0
    if run.truth is not None:
        known = np.isfinite(run.truth["depth"]) & (run.truth["depth"] > 0)
        scale = np.nanmedian(reference["depth"]) / np.median(run.truth["depth"][known])

    def coloured(depth: np.ndarray) -> str:
        return figures.colour_map(np.log(np.maximum(depth, 1e-6)), *limits, "viridis_r")

    pictures = (255 * run.images.tensor[0].permute(0, 2, 3, 1)).round().byte().numpy()
    rows = [
        {
            "name": run.images.names[i],
            "picture": figures.thumbnail(pictures[i]),
            "accelerated": coloured(run.accelerated["depth"][i]),
            "dense": None if run.dense is None else coloured(run.dense["depth"][i]),
            "difference": None if difference is None else figures.colour_map(difference[i], 0, top, "magma"),
            "truth": None if run.truth is None else coloured(scale * run.truth["depth"][i]),
        }
        for i in shown
    ]
    return {
        "depth": rows,
        "depth_range": (float(low), float(high)),
        "depth_bar": figures.colour_bar("viridis_r"),
        "difference_bar": figures.colour_bar("magma"),
        "difference_top": top,
    }


def writers(run: RunResult) -> dict[str, Callable[[Path], None]]:
    """File name -> function that writes it to a path, for every output of the run."""
    arrays = dict(run.accelerated) | {"names": np.array(run.images.names)}
    arrays |= {f"dense_{name}": value for name, value in (run.dense or {}).items()}
    datasets = {
        "profile.nc": run.profile.data,
        "ranks.nc": run.ranks,
        "spectra_predicted.nc": run.predicted,
        "spectra_measured.nc": run.measured,
        "validation.nc": run.validation,
    }
    found: dict[str, Callable[[Path], None]] = {
        "predictions.npz": lambda path: np.savez_compressed(path, **arrays),
        "schedule.json": lambda path: path.write_text(run.schedule.to_json() + "\n"),
        "results.json": lambda path: path.write_text(json.dumps(run.results, indent=1, allow_nan=False) + "\n"),
        "report.html": lambda path: path.write_text(render(run), encoding="utf-8"),
    }
    for name, data in datasets.items():
        if data is not None:
            found[name] = lambda path, data=data: write_netcdf(data, path)
    return found


def write_netcdf(data: xr.Dataset, path: Path) -> None:
    """A compressed netCDF file."""
    encoding = {name: {"zlib": True} for name in data.data_vars if data[name].ndim and data[name].dtype.kind == "f"}
    data.to_netcdf(path, engine="h5netcdf", encoding=encoding)
