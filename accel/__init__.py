"""Accelerate the global attention of visual geometry transformers by the predicted collapse, and check the result."""

from accel.attend import attend
from accel.cost import Device
from accel.errors import AccelError
from accel.images import load_images
from accel.layout import TokenLayout
from accel.models import load_model
from accel.patch import patch, record
from accel.policies import Exact, Frame, Policy, Subsample
from accel.predictors import ConstantPredictor, OraclePredictor, TheoryPredictor
from accel.profile import Profile, probe
from accel.schedule import Schedule, plan
from accel.sites import Site, sites
from accel.spectra import measure_spectra
from accel.validate import validate

__all__ = [
    "AccelError",
    "ConstantPredictor",
    "Device",
    "Exact",
    "Frame",
    "OraclePredictor",
    "Policy",
    "Profile",
    "Schedule",
    "Site",
    "Subsample",
    "TheoryPredictor",
    "TokenLayout",
    "attend",
    "load_images",
    "load_model",
    "measure_spectra",
    "patch",
    "plan",
    "probe",
    "record",
    "sites",
    "validate",
]
