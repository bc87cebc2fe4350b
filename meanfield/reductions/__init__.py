"""Errors of cheaper attention, as closed forms of statistics that a probe measures.

Per query i: weights A_ij over N keys, values v_j, output o = sum_j A_ij v_j. The statistics, all per query:

    weighted_spread   Q = sum_j A_ij^2 |v_j - o|^2          value_spread   V_A = sum_j A_ij |v_j - o|^2
    value_variance    sigma_v^2 = (1/N) sum_j |v_j - vbar|^2        mean_offset    B^2 = |vbar - o|^2
    own_mass          rho = sum of A_ij over the keys of the query's own frame

The functions exported here broadcast over statistics and return the expected squared error |o_reduced - o|^2 in the
units of |v|^2 unless their docstring says otherwise; divide by |o|^2 and take the root for the relative rms error.
`theory` applies them to an `AttentionSample`, `monte_carlo` carries the same reductions out, `collapse` says what each
does to the rate of collapse. Source: docs/theory/reductions.md.
"""

from meanfield.reductions import collapse, monte_carlo, theory
from meanfield.reductions.fill import mean_fill_error, mean_fill_weight, shrinkage_error, shrinkage_weight
from meanfield.reductions.frames import (
    extrapolate_entropy,
    extrapolate_own_mass,
    extrapolate_squares,
    frame_error,
    frame_ratio,
)
from meanfield.reductions.merging import merge_displacement, softmax_displacement
from meanfield.reductions.redundancy import redundant_spread
from meanfield.reductions.sample import AttentionSample, ReductionError
from meanfield.reductions.sparsity import kept_mass_bound, top_error, top_mass, top_shift
from meanfield.reductions.statistics import statistics
from meanfield.reductions.subsample import (
    common_mode_share,
    control_variate_error,
    gaussian_subsample_error,
    subsample_error,
    subset_moment,
)

__all__ = [
    "AttentionSample",
    "ReductionError",
    "collapse",
    "common_mode_share",
    "control_variate_error",
    "extrapolate_entropy",
    "extrapolate_own_mass",
    "extrapolate_squares",
    "frame_error",
    "frame_ratio",
    "gaussian_subsample_error",
    "kept_mass_bound",
    "mean_fill_error",
    "mean_fill_weight",
    "merge_displacement",
    "monte_carlo",
    "redundant_spread",
    "shrinkage_error",
    "shrinkage_weight",
    "softmax_displacement",
    "statistics",
    "subsample_error",
    "subset_moment",
    "theory",
    "top_error",
    "top_mass",
    "top_shift",
]
