"""Mean-field theory of attention collapse: rank definitions, closed forms, and predictions in depth and tokens."""

from meanfield.closed_forms import (
    contraction,
    equiangular_attention_ranks,
    equiangular_token_ranks,
    gaussian_logit_ranks,
    gaussian_qk_ranks,
)
from meanfield.extrapolation import ProbeLaw, one_probe_law, two_probe_law
from meanfield.finite_n import PopulationLaw, condensed, sphere_law, sphere_ranks
from meanfield.params import Probe, RankParams, load_params, preset
from meanfield.predict import predict_rank, predict_spectrum
from meanfield.ranks import (
    attention_entropy,
    effective_rank,
    effective_rank_energy,
    participation_ratio,
    spectrum_ranks,
    stable_rank,
    token_ranks,
)
from meanfield.recursion import Recursion, depth_exponent, fit_recursion, rollout, spread

__all__ = [
    "PopulationLaw",
    "Probe",
    "ProbeLaw",
    "RankParams",
    "Recursion",
    "attention_entropy",
    "condensed",
    "contraction",
    "depth_exponent",
    "effective_rank",
    "effective_rank_energy",
    "equiangular_attention_ranks",
    "equiangular_token_ranks",
    "fit_recursion",
    "gaussian_logit_ranks",
    "gaussian_qk_ranks",
    "load_params",
    "one_probe_law",
    "participation_ratio",
    "predict_rank",
    "predict_spectrum",
    "preset",
    "rollout",
    "spectrum_ranks",
    "sphere_law",
    "sphere_ranks",
    "spread",
    "stable_rank",
    "token_ranks",
    "two_probe_law",
]
