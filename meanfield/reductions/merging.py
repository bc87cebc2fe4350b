"""Merging keys and values (one mean key for each group), or queries (one mean query, its output copied back)."""

from __future__ import annotations

import numpy as np

from meanfield._checks import Array, finite
from meanfield.derivations.merge_expansion import RESULT as MERGE_EXPANSION
from meanfield.derivations.softmax_response import RESULT as SOFTMAX_RESPONSE


def merge_displacement(
    weights: Array, covariance: Array, logit_variance: Array, values: Array, outputs: Array
) -> Array:
    """o - o_merged to second order in the logits' spread within groups: sum_g A_g [C_g + (s_g^2 - sbar^2)(v_g - o)/2].

    weights A_g (n, G) of the merged measure; covariance C_g = Cov_g(v, l) (n, G, C); logit_variance s_g^2 (n, G) within
    the group, sbar^2 = sum_g A_g s_g^2; values v_g (G, C); outputs (n, C). The merged keys carry the mass (ln m) of
    their group. Error of fourth order for symmetric groups, third otherwise; use it for s_g < about .7.
    ValueError on entries that are not finite.
    """
    weights, covariance, logit_variance, values, outputs = map(
        finite,
        ("weights", "covariance", "logit_variance", "values", "outputs"),
        (weights, covariance, logit_variance, values, outputs),
    )
    mean = (weights * logit_variance).sum(1)
    terms = MERGE_EXPANSION.function(
        weights[:, :, None],
        covariance,
        logit_variance[:, :, None],
        mean[:, None, None],
        values[None],
        outputs[:, None],
    )
    return np.asarray(terms).sum(1)


def softmax_displacement(weights: Array, change: Array, values: Array, outputs: Array) -> Array:
    """First-order change of the output when the logits change by dl_j: sum_j A_j (dl_j - dlbar)(v_j - o).

    weights and change (n, N), values (N, C), outputs (n, C) -> (n, C). With dl = ln m_g it is what a merge without mass
    loses; with dl_j = k_j.(q_i - qbar) it is J (q_i - qbar), J = Cov_A(v, k), what merging queries loses. Error of
    second order in dl. ValueError on entries that are not finite.
    """
    weights, change, values, outputs = map(
        finite, ("weights", "change", "values", "outputs"), (weights, change, values, outputs)
    )
    mean = (weights * change).sum(1)
    response = [
        SOFTMAX_RESPONSE.function(a[:, None], d[:, None], m, values, o).sum(0)
        for a, d, m, o in zip(weights, change, mean, outputs, strict=True)
    ]
    return np.array(response)
