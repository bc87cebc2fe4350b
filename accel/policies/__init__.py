"""Attention policies, one file each; a new one is imported here (see CONTRIBUTING.md)."""

from accel.policies.base import Context, Cost, Policy, attention_cost, policy_from_dict, registry
from accel.policies.block_sparse import BlockSparse
from accel.policies.compose import Compose
from accel.policies.exact import Exact
from accel.policies.frame import Frame
from accel.policies.key_subset import KeySubset
from accel.policies.merge import Merge
from accel.policies.phased_grid import PhasedGrid
from accel.policies.query_merge import QueryMerge
from accel.policies.subsample import Subsample
from accel.policies.temporal_stride import TemporalStride

__all__ = [
    "BlockSparse",
    "Compose",
    "Context",
    "Cost",
    "Exact",
    "Frame",
    "KeySubset",
    "Merge",
    "PhasedGrid",
    "Policy",
    "QueryMerge",
    "Subsample",
    "TemporalStride",
    "attention_cost",
    "policy_from_dict",
    "registry",
]
