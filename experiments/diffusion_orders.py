"""Claim: the finite-volume solver keeps mass and sign, and has its declared orders against exact solutions.

`python -m experiments.diffusion_orders`, half a minute on one core; `experiments.degenerate_diffusion` stores the
numbers and draws them.
"""

import numpy as np
import typer
import xarray as xr
from rich.console import Console
from rich.table import Table

from experiments.verdict import Verdict, report
from meanfield.diffusion import DiffusionConfig, solve_diffusion
from meanfield.exact_diffusion import (
    barenblatt,
    barenblatt_radius,
    gaussian,
    ornstein_uhlenbeck_variance,
    pre_norm_diffusion_time,
)

CELLS = (50, 100, 200, 400)
STEPS = (8, 16, 32, 64)
PRE_NORM = {"gain": 1.0, "contraction": 0.4, "initial_norm": 0.5}


def grid(count: int, half_width: float) -> np.ndarray:
    width = 2.0 * half_width / count
    return -half_width + width * (np.arange(count) + 0.5)


def cell_means(function, x: np.ndarray, samples: int = 100) -> np.ndarray:
    inside = ((np.arange(samples) + 0.5) / samples - 0.5) * (x[1] - x[0])
    return function(x[:, None] + inside).mean(axis=1)


def fading(_u, t):
    return PRE_NORM["gain"] * PRE_NORM["contraction"] / (PRE_NORM["initial_norm"] + PRE_NORM["gain"] * t)


def space_problems() -> dict:
    """Name: (declared order, half width, start, end, time, D, b)."""
    heat = 0.1 + 2.0 * pre_norm_diffusion_time(1.0, **PRE_NORM)
    pulled = ornstein_uhlenbeck_variance(1.0, 0.3, diffusivity=0.5, pull=1.0)
    problems = {
        "heat kernel, D = .4/(.5 + t)": (
            *(2.0, 7.0, lambda y: gaussian(y, 0.1), lambda y: gaussian(y, heat), 1.0),
            *(fading, None),
        ),
        "linear pull (Ornstein-Uhlenbeck)": (
            *(
                2.0,
                5.0,
                lambda y: gaussian(y, 0.3, centre=1.0),
                lambda y: gaussian(y, pulled, centre=np.exp(-1.0)),
                1.0,
            ),
            *(lambda _u, _t: 0.5, lambda x, _t: x),
        ),
    }
    for m in (1.5, 2.0, 3.0, 4.0):
        radius = barenblatt_radius(0.2, 1.0, m=m)
        problems[f"Barenblatt, m = {m:g}"] = (
            *(min(2.0, 1.0 + 1.0 / (m - 1.0)), 2.0),
            *(lambda y, m=m: barenblatt(y, 1.0, m=m), lambda y, m=m, radius=radius: barenblatt(y, radius, m=m), 0.2),
            *(lambda u, _t, m=m: m * u ** (m - 1.0), None),
        )
    return problems


def space_errors(half_width, start, end, time, diffusivity, drift) -> list[float]:
    """L1 errors on the grids of CELLS, time step proportional to the cell (tr-bdf2)."""
    errors = []
    for count in CELLS:
        x = grid(count, half_width)
        config = DiffusionConfig(0.2 * (x[1] - x[0]), "tr-bdf2")
        ds = solve_diffusion(x, cell_means(start, x), [0.0, time], diffusivity, drift, config=config)
        errors.append(float(np.abs(ds.density[-1].values - cell_means(end, x)).sum() * (x[1] - x[0])))
    return errors


def time_errors(method: str) -> list[float]:
    """Largest errors with STEPS steps against the exact solution of the semi-discrete equation (a cosine)."""
    count = 64
    x = (np.arange(count) + 0.5) / count
    eigenvalue = (2.0 - 2.0 * np.cos(np.pi / count)) * count**2
    exact = 1.0 + 0.5 * np.exp(-eigenvalue * pre_norm_diffusion_time(1.0, **PRE_NORM)) * np.cos(np.pi * x)
    errors = []
    for steps in STEPS:
        config = DiffusionConfig(1.0 / steps, method)
        ds = solve_diffusion(x, 1.0 + 0.5 * np.cos(np.pi * x), [0.0, 1.0], fading, config=config)
        errors.append(float(np.abs(ds.density[-1].values - exact).max()))
    return errors


def long_run(method: str, step_in_limits: float, steps: int) -> tuple[float, float]:
    """(relative drift of the mass, smallest density) of a porous medium from a rough start over many steps."""
    x = grid(200, 4.0)
    start = np.where(np.abs(x) < 0.5, 1.0 + 0.5 * np.sin(9.0 * x), 0.0)
    step = step_in_limits * (x[1] - x[0]) ** 2 / (4.0 * start.max())
    times = np.linspace(0.0, steps * step, 5)
    ds = solve_diffusion(x, start, times, lambda u, _t: 2.0 * u, config=DiffusionConfig(step, method))
    return float(np.abs(ds.mass / ds.mass[0] - 1.0).max()), float(ds.density.min())


def solver_claims() -> tuple[list[Verdict], xr.Dataset, dict]:
    """Verdicts, L1 errors (problem, cells), and the orders; prints the tables."""
    table = Table("problem", *map(str, CELLS), "order", "declared", title="L1 error against exact solutions, by cells")
    problems = space_problems()
    errors = {name: space_errors(*problem[1:]) for name, problem in problems.items()}
    orders = {name: float(np.log2(values[0] / values[-1]) / (len(CELLS) - 1)) for name, values in errors.items()}
    declared = {name: problem[0] for name, problem in problems.items()}
    for name, values in errors.items():
        table.add_row(name, *(f"{e:.2e}" for e in values), f"{orders[name]:.2f}", f"{declared[name]:.2f}")
    Console().print(table)
    steps = {method: time_errors(method) for method in ("backward-euler", "tr-bdf2")}
    time_orders = {method: float(np.log2(values[-2] / values[-1])) for method, values in steps.items()}
    table = Table("method", *(f"{n} steps" for n in STEPS), "order", title="largest error in time")
    for method, values in steps.items():
        table.add_row(method, *(f"{e:.2e}" for e in values), f"{time_orders[method]:.3f}")
    Console().print(table)
    runs = {
        "backward-euler, 100 explicit limits, 1000 steps": long_run("backward-euler", 100.0, 1000),
        "tr-bdf2, 10 explicit limits, 1000 steps": long_run("tr-bdf2", 10.0, 1000),
    }
    for name, (drift, least) in runs.items():
        Console().print(f"{name}: mass drift {drift:.1e}, smallest density {least:.1e}")
    smooth = [abs(orders[name] - 2.0) for name in list(orders)[:2]]
    smooth += [abs(time_orders["backward-euler"] - 1.0), abs(time_orders["tr-bdf2"] - 2.0)]
    shortfall = max(declared[name] - orders[name] for name in list(orders)[2:])
    worst_mass, worst_value = max(d for d, _ in runs.values()), min(v for _, v in runs.values())
    verdicts = [
        Verdict("relative drift of the mass over 1000 steps", worst_mass, 1e-12, worst_mass <= 1e-12),
        Verdict("smallest density over 1000 steps", worst_value, 0.0, worst_value >= 0.0),
        Verdict("measured minus declared order, smooth solutions", max(smooth), 0.1, max(smooth) <= 0.1),
        Verdict("declared minus measured order, free boundaries", shortfall, 0.1, shortfall <= 0.1),
    ]
    data = xr.Dataset(
        {"l1_error": (("problem", "cells"), list(errors.values()), {"long_name": "L1 error", "units": "mass"})},
        {"problem": list(errors), "cells": list(CELLS)},
    )
    numbers = {"orders": orders, "declared": declared, "time_orders": time_orders, "long_runs": runs}
    return verdicts, data, numbers


def main() -> None:
    """Print the tables and the verdicts."""
    report(solver_claims()[0], None)


if __name__ == "__main__":
    typer.run(main)
