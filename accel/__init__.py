"""Accelerate the global attention of visual geometry transformers by the predicted collapse, and check the result."""

from accel.attend import attend
from accel.cost import Device
from accel.errors import AccelError
from accel.images import load_images
from accel.layout import TokenLayout
from accel.lean import lean
from accel.models import load_model
from accel.patch import patch, record
from accel.policies import (
    BlockSparse,
    Compose,
    Exact,
    Frame,
    Merge,
    PhasedGrid,
    Policy,
    QueryMerge,
    Subsample,
    TemporalStride,
)
from accel.predictors import ConstantPredictor, OraclePredictor, TheoryPredictor
from accel.presets import published_schedule
from accel.profile import Profile, probe
from accel.schedule import Schedule, plan
from accel.sites import Site, layout_of, sites
from accel.spectra import measure_spectra
from accel.validate import validate

__all__ = [
    "AccelError",
    "BlockSparse",
    "Compose",
    "ConstantPredictor",
    "Device",
    "Exact",
    "Frame",
    "Merge",
    "OraclePredictor",
    "PhasedGrid",
    "Policy",
    "Profile",
    "QueryMerge",
    "Schedule",
    "Site",
    "Subsample",
    "TemporalStride",
    "TheoryPredictor",
    "TokenLayout",
    "attend",
    "layout_of",
    "lean",
    "load_images",
    "load_model",
    "measure_spectra",
    "patch",
    "plan",
    "probe",
    "published_schedule",
    "record",
    "sites",
    "validate",
]
