"""Our own VGGT: configuration, network, checkpoints."""

from accel.models.checkpoint import load_model, random_model, save_model
from accel.models.config import TESTBED, VGGT_1B, VGGTConfig
from accel.models.vggt import VGGT

__all__ = ["TESTBED", "VGGT", "VGGT_1B", "VGGTConfig", "load_model", "random_model", "save_model"]
