"""Attention policies, one file each; a new one is imported here (see CONTRIBUTING.md)."""

from accel.policies.base import Context, Cost, Policy, attention_cost, policy_from_dict, registry
from accel.policies.exact import Exact
from accel.policies.frame import Frame
from accel.policies.subsample import Subsample

__all__ = ["Context", "Cost", "Exact", "Frame", "Policy", "Subsample", "attention_cost", "policy_from_dict", "registry"]
