"""Mean-field theory of attention collapse: exact dynamics, spectra, diffusion, reductions, and predictions from them.

The names most users need are exported here; every module can also be imported by its name, such as
`meanfield.equiangular`, `meanfield.diffusion`, `meanfield.reductions` or `meanfield.derivations`.
"""

from meanfield import (
    derivations,
    equiangular,
    exact_diffusion,
    gaussian_closure,
    index_flow,
    linear_response,
    long_context,
    mean_shift,
    reductions,
    rope,
    scalar_laws,
    skipless,
)
from meanfield.attention import attend, effective_keys, frobenius_squared, row_entropies
from meanfield.closed_forms import (
    collapsed_token_excess,
    contraction,
    equiangular_attention_ranks,
    equiangular_token_ranks,
    gaussian_logit_ranks,
    gaussian_qk_ranks,
    token_participation_ratio,
)
from meanfield.condensation import Regime, condensed, regime
from meanfield.diffusion import DiffusionConfig, solve_diffusion
from meanfield.exponent import PowerLaw, fit_power_law
from meanfield.extrapolation import ProbeLaw, one_probe_law, two_probe_law
from meanfield.finite_n import PopulationLaw
from meanfield.gaussian_spectrum import gaussian_law, gaussian_ranks
from meanfield.measure import Measure, w2_to_dirac, w2_to_dirac_on_sphere
from meanfield.mehler import dot_product_attention, gaussian_kernel_attention
from meanfield.mixtures import MixtureLaw, cluster_law
from meanfield.params import Probe, RankParams, load_params, preset
from meanfield.particles import Dynamics, Solution, observe, simulate
from meanfield.predict import predict_rank, predict_spectrum
from meanfield.qk_norm import SphereLaw, sphere_law, sphere_ranks
from meanfield.ranks import (
    attention_entropy,
    effective_rank,
    effective_rank_energy,
    participation_ratio,
    spectrum_ranks,
    stable_rank,
    token_ranks,
)
from meanfield.recursion import Recursion, asymptotic_exponents, fit_recursion, rollout, spread
from meanfield.row_statistics import gaussian_logits, row_statistics, sphere_logits
from meanfield.steppers import euler, heun, rk4
from meanfield.uncertainty import prediction_interval

__all__ = [
    "DiffusionConfig",
    "Dynamics",
    "Measure",
    "MixtureLaw",
    "PopulationLaw",
    "PowerLaw",
    "Probe",
    "ProbeLaw",
    "RankParams",
    "Recursion",
    "Regime",
    "Solution",
    "SphereLaw",
    "asymptotic_exponents",
    "attend",
    "attention_entropy",
    "cluster_law",
    "collapsed_token_excess",
    "condensed",
    "contraction",
    "derivations",
    "dot_product_attention",
    "effective_keys",
    "effective_rank",
    "effective_rank_energy",
    "equiangular",
    "equiangular_attention_ranks",
    "equiangular_token_ranks",
    "euler",
    "exact_diffusion",
    "fit_power_law",
    "fit_recursion",
    "frobenius_squared",
    "gaussian_closure",
    "gaussian_kernel_attention",
    "gaussian_law",
    "gaussian_logit_ranks",
    "gaussian_logits",
    "gaussian_qk_ranks",
    "gaussian_ranks",
    "heun",
    "index_flow",
    "linear_response",
    "load_params",
    "long_context",
    "mean_shift",
    "observe",
    "one_probe_law",
    "participation_ratio",
    "predict_rank",
    "predict_spectrum",
    "prediction_interval",
    "preset",
    "reductions",
    "regime",
    "rk4",
    "rollout",
    "rope",
    "row_entropies",
    "row_statistics",
    "scalar_laws",
    "simulate",
    "skipless",
    "solve_diffusion",
    "spectrum_ranks",
    "sphere_law",
    "sphere_logits",
    "sphere_ranks",
    "spread",
    "stable_rank",
    "token_participation_ratio",
    "token_ranks",
    "two_probe_law",
    "w2_to_dirac",
    "w2_to_dirac_on_sphere",
]
