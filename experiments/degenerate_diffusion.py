"""Claims: where "degenerate diffusion" is an equation, its solutions are right; where it is not, it is refused.

`python -m experiments.degenerate_diffusion [--seed 0] [--out experiments/results/degenerate_diffusion]`, a minute on
one core. (a) The finite-volume solver keeps mass and sign and has its declared orders. (b) Haff's law and its random-V
cousin predict Pre-LN particles. (c) Modes of the token-index heat flow decay as the predicted powers of depth. (d)
Attraction in feature space amplifies fine waves first, up to the width of the kernel: backward heat.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure

from experiments.diffusion_orders import CELLS, solver_claims
from experiments.verdict import Verdict, report
from meanfield.index_flow import index_flow, mode_amplitude, mode_power_law, pre_norm_gains, relaxation_deficits
from meanfield.mean_shift import modulation_growth
from meanfield.scalar_laws import power_law_decay

BETAS = (16.0, 64.0, 256.0)
START = 0.05
"""The scalar laws neglect the spread against 1: they start, without a fitted constant, where it falls below this."""


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# (b) scalar laws


def energies(x: np.ndarray) -> tuple[float, float]:
    """(r^2, D): mean square norm and mean square difference from the mean, corrected by N/(N - 1)."""
    count = len(x)
    return (x**2).sum(1).mean(), ((x - x.mean(0)) ** 2).sum(1).mean() * count / (count - 1.0)


def pre_norm_layers(rng, tokens: int, dim: int, layers: int, gain: float, *, random_values: bool) -> np.ndarray:
    """(layers + 1, 2) energies of X <- X + gain softmax(theta theta^T) theta V^T, theta the normalised tokens."""
    mean = np.zeros(dim)
    mean[0] = np.sqrt(0.5)
    x = mean + np.sqrt(0.5 / dim) * rng.standard_normal((tokens, dim))
    record = [energies(x)]
    for _ in range(layers):
        theta = x / np.linalg.norm(x, axis=1, keepdims=True)
        update = softmax(theta @ theta.T) @ theta
        if random_values:
            update = update @ (rng.standard_normal((dim, dim)) / np.sqrt(dim))
        x = x + gain * update
        record.append(energies(x))
    return np.array(record)


def law_error(measured: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.abs(predicted / measured - 1.0).max())


def scalar_claims(rng) -> tuple[list[Verdict], xr.Dataset]:
    layers, gain, tokens, dim, draws = 1600, 0.25, 128, 64, 400
    square_norm, difference = pre_norm_layers(rng, tokens, dim, layers, gain, random_values=False).T
    spread = difference / square_norm
    begin = int(np.argmax(spread < START))
    depth = np.arange(layers + 1 - begin)
    width = np.full(layers + 1, np.nan)
    width[begin:] = power_law_decay(gain * depth, np.sqrt(spread[begin]), 1.0 / np.sqrt(difference[begin]))
    runs = np.array([pre_norm_layers(rng, 64, dim, 100, 1.0, random_values=True) for _ in range(draws)])
    mean_square_norm, mean_difference = runs.mean(0).T
    variance = mean_difference / mean_square_norm
    start = int(np.argmax(variance < START))
    law = np.full(len(variance), np.nan)
    law[start:] = power_law_decay(np.arange(len(law) - start), variance[start], 1.0 / mean_difference[start])
    coherent = law_error(np.sqrt(spread[begin:]), width[begin:])
    incoherent = law_error(variance[start:], law[start:])
    scatter = float((runs[:, -1, 0].std() / runs[:, -1, 0].mean()) / np.sqrt(draws))
    verdicts = [
        Verdict(
            f"coherent Pre-LN, N = {tokens}: largest relative error of Haff's W2", coherent, 0.05, coherent <= 0.05
        ),
        Verdict(
            f"random V, N = 64, {draws} draws: largest relative error of the 1/t variance",
            incoherent,
            0.05,
            incoherent <= 0.05,
            (incoherent - 2.0 * scatter, incoherent + 2.0 * scatter),
        ),
    ]
    data = xr.Dataset(
        {
            "width": ("layer", np.sqrt(spread), {"long_name": "W2 to a Dirac, coherent V", "units": "1"}),
            "width_law": ("layer", width, {"long_name": "Haff's law", "units": "1"}),
            "variance": ("random_layer", variance, {"long_name": "variance, random V", "units": "1"}),
            "variance_law": ("random_layer", law, {"long_name": "d sigma^2/dt = -c sigma^4", "units": "1"}),
        },
        attrs={"gain_coherent": gain, "gain_random": 1.0, "draws": draws, "standard_error_of_variance": scatter},
    )
    return verdicts, data


# (c) token-index heat flow


def mode_slopes(tokens: np.ndarray, left: np.ndarray, norm: float) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (layer, mode) of the left eigenvectors and their power of depth over the last factor of four."""
    amplitude = np.linalg.norm(np.einsum("kn,lnc->lkc", left, tokens), axis=-1)
    amplitude /= amplitude[0]
    last = len(tokens) - 1
    first = last // 4
    return amplitude, np.log(amplitude[last] / amplitude[first]) / np.log((last + norm) / (first + norm))


def live_attention_power(start: np.ndarray, layers: int, beta: float = 4.0) -> float:
    """Power of depth of the relative width under Pre-LN, whose attention follows the tokens, over the last decade."""
    x = 4.0 * start / np.linalg.norm(start, axis=1, keepdims=True)
    widths = []
    for _ in range(layers + 1):
        square_norm, difference = energies(x)
        widths.append(np.sqrt(difference / square_norm))
        theta = x / np.linalg.norm(x, axis=1, keepdims=True)
        x = x + softmax(beta * theta @ theta.T) @ theta
    return float(np.log(widths[layers // 10] / widths[-1]) / np.log(10.0))


def flow_claims(rng) -> tuple[list[Verdict], xr.Dataset]:
    count, dim, layers, norm = 64, 16, 4000, 2.0
    x = rng.standard_normal((count, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    attention = softmax(4.0 * x @ x.T)
    values, vectors = np.linalg.eig(attention)
    order = np.argsort(-values.real)
    left = np.linalg.inv(vectors)[order].real[1:]
    deficits = relaxation_deficits(attention).real[1:]
    features = rng.standard_normal((count, 4))
    tokens = index_flow(attention, features, pre_norm_gains(layers, norm))["tokens"].values
    amplitude, slopes = mode_slopes(tokens, left, norm)
    exact = mode_amplitude(np.arange(layers + 1)[:, None], deficits, norm)
    one_side = x + np.eye(dim)[0]
    live_power, uniform_power = (live_attention_power(start, layers) for start in (one_side, x))
    power_error = float(np.abs(slopes + deficits).max())
    exact_error = float(np.abs(amplitude / exact - 1.0).max())
    verdicts = [
        Verdict(f"{count - 1} modes, largest error of the power 1 - lambda", power_error, 0.01, power_error <= 0.01),
        Verdict("largest relative error of the exact amplitude", exact_error, 1e-8, exact_error <= 1e-8),
        Verdict(
            "attention of the moving tokens, on one side (lambda -> 0): distance of the power from 1",
            abs(live_power - 1.0),
            0.05,
            abs(live_power - 1.0) <= 0.05,
        ),
    ]
    data = xr.Dataset(
        {
            "amplitude": (("layer", "mode"), amplitude, {"long_name": "amplitude of the mode", "units": "1"}),
            "deficit": ("mode", deficits, {"long_name": "1 - eigenvalue", "units": "1"}),
            "slope": ("mode", slopes, {"long_name": "measured power of depth", "units": "1"}),
        },
        attrs={"initial_norm": norm, "live_power": live_power, "live_power_from_uniform_directions": uniform_power},
    )
    return verdicts, data


# (d) backward diffusion


def ring_growth(waves: int, beta: float, count: int = 512, time: float = 0.5, steps: int = 20) -> float:
    """Measured growth rate of the mode k = waves of particles on a ring of length 2 pi under the mean shift."""
    even = 2.0 * np.pi * np.arange(count) / count
    x = even - 2e-3 / waves * np.sin(waves * even)

    def velocity(x):
        gap = (x - x[:, None] + np.pi) % (2.0 * np.pi) - np.pi
        return (softmax(-0.5 * beta * gap**2) * gap).sum(1)

    before = np.abs(np.exp(1j * waves * x).mean())
    for _ in range(steps):
        x = x + time / steps * velocity(x + 0.5 * time / steps * velocity(x))
    return float(np.log(np.abs(np.exp(1j * waves * x).mean()) / before) / time)


def backward_claims() -> tuple[list[Verdict], xr.Dataset]:
    waves = np.array([1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 23, 27, 32])
    growth = np.array([[ring_growth(k, beta) for k in waves] for beta in BETAS])
    law = np.array([modulation_growth(waves.astype(float), beta) for beta in BETAS])
    error = float(np.abs(growth - law).max() / (2.0 / np.e))
    fastest = waves[growth.argmax(1)] / np.sqrt(2.0 * np.array(BETAS))
    off = float(np.abs(fastest - 1.0).max())
    rising = bool(all(np.all(np.diff(g[waves <= np.sqrt(2.0 * b)]) > 0.0) for g, b in zip(growth, BETAS, strict=True)))
    verdicts = [
        Verdict("growth rate of a wave against k^2/beta e^{-k^2/2beta}, error over 2/e", error, 0.02, error <= 0.02),
        Verdict("fastest wave against sqrt(2 beta), relative (waves up to 20 % apart)", off, 0.2, off <= 0.2),
        Verdict("finer waves grow faster up to the kernel width (1 = yes)", float(rising), 1.0, rising),
    ]
    data = xr.Dataset(
        {
            "growth": (("beta", "wave_number"), growth, {"long_name": "measured growth rate", "units": "1/layer"}),
            "growth_law": (("beta", "wave_number"), law, {"long_name": "predicted growth rate", "units": "1/layer"}),
        },
        {"beta": list(BETAS), "wave_number": waves},
    )
    return verdicts, data


def figure(data: xr.Dataset) -> Figure:
    """Four panels: orders, scalar laws, modes, growth of waves."""
    fig = Figure(figsize=(12, 9), layout="constrained")
    (solver, scalar), (modes, waves) = fig.subplots(2, 2)
    for index, name in enumerate(data["problem"].values):
        solver.loglog(data["cells"], data["l1_error"].sel(problem=name), "o-", color=f"C{index}", label=str(name))
    cells = data["cells"].values.astype(float)
    for order, start in ((2.0, 1.2e-3), (4.0 / 3.0, 6e-3)):
        solver.loglog(
            cells, start * (cells / cells[0]) ** -order, "k--" if order == 2.0 else "k:", label=f"order {order:.3g}"
        )
    solver.set_xticks(CELLS, [str(n) for n in CELLS])
    solver.set_xticks([], minor=True)
    solver.set(title="(a) finite-volume solver", xlabel="cells", ylabel="L1 error (mass)")
    layer, random_layer = np.arange(data.sizes["layer"]), np.arange(data.sizes["random_layer"])
    scalar.loglog(layer, data["width"], "C0", label=r"particles, $V=I$: $W_2$")
    scalar.loglog(layer, data["width_law"], "k--", label=r"Haff: $\dot w=-\alpha w^2/\sqrt{C}$")
    scalar.loglog(random_layer, data["variance"], "C1", label=r"particles, random $V$: variance")
    scalar.loglog(random_layer, data["variance_law"], "k:", label=r"$d\sigma^2/dt=-c\,\sigma^4$")
    reference = np.array([100.0, layer[-1]])
    scalar.loglog(reference, 0.6 * reference[0] * 0.1 / reference, "0.6", label="slope -1")
    scalar.set(title="(b) scalar laws near collapse", xlabel="layer", ylabel=r"$W_2$ or variance (norm$^2$ = 1)")
    depth = np.arange(data.sizes["flow_layer"])
    for index, mode in enumerate((0, 4, 15, 62)):
        q = float(data["deficit"][mode])
        modes.loglog(depth[1:], data["amplitude"][1:, mode], f"C{index}", label=rf"$1-\lambda={q:.2f}$")
        prefactor = float(data["amplitude"][-1, mode]) / mode_power_law(depth[-1], 1.0 - q, data.attrs["initial_norm"])
        law = prefactor * mode_power_law(depth, 1.0 - q, data.attrs["initial_norm"])
        modes.loglog(depth[1:], law[1:], "k--", lw=0.8, label="power law" if index == 3 else None)
    modes.set(
        title="(c) heat flow over token indices, fixed attention",
        xlabel="layer",
        ylabel="amplitude of the mode (initial = 1)",
    )
    for index, beta in enumerate(data["beta"].values):
        fine = np.linspace(1.0, 32.0, 400)
        waves.plot(
            data["wave_number"], data["growth"].sel(beta=beta), f"C{index}o", label=rf"particles, $\beta={beta:g}$"
        )
        waves.plot(fine, modulation_growth(fine, beta), f"C{index}")
        heat = fine**2 / beta
        waves.plot(
            fine[heat < 0.9], heat[heat < 0.9], f"C{index}:", label=r"backward heat $k^2/\beta$" if index == 0 else None
        )
    waves.axhline(2.0 / np.e, color="0.6", lw=0.8, label="2/e")
    waves.set(
        title="(d) attraction: growth of a wave", xlabel="wave number k (1/length)", ylabel="growth rate (1/layer)"
    )
    waves.set_ylim(-0.03, 1.15)
    for ax in (solver, scalar, modes, waves):
        ax.legend(fontsize=8, loc="upper right" if ax is waves else "best", ncols=2 if ax is waves else 1)
        ax.grid(alpha=0.3)
    return fig


def main(
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/degenerate_diffusion"
    ),
) -> None:
    """Check the four claims, print their tables and verdicts, write the numbers and the figure."""
    rng = np.random.default_rng(seed)
    solver, solver_data, numbers = solver_claims()
    scalar, scalar_data = scalar_claims(rng)
    flow, flow_data = flow_claims(rng)
    backward, backward_data = backward_claims()
    flow_data = flow_data.rename({"layer": "flow_layer"})
    data = xr.merge([solver_data, scalar_data, flow_data, backward_data], combine_attrs="no_conflicts")
    data.attrs["seed"] = seed
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(data).savefig(out.with_suffix(".png"), dpi=110)
    report([*solver, *scalar, *flow, *backward], out.with_suffix(".json"), seed=seed, **numbers, **flow_data.attrs)


if __name__ == "__main__":
    typer.run(main)
