"""A device whose rates are known, a clock that only moves when told to, and a machine that has both."""

import torch

from accel.bench.machine import Machine
from accel.cost import Device
from accel.policies import Exact, Frame, Subsample

RATES = Device("rates of no machine", linear=2e10, attention=2e10, convolution=2e10, bandwidth=5e9)
FEW = (Exact(), Frame(), Subsample(stride=4, fill="shrink"))
"""Options of a profile that is quickly made."""


class Clock:
    """Seconds that pass by `advance` alone."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def cpu(clock=None) -> Machine:
    device = torch.device("cpu")
    return Machine(device) if clock is None else Machine(device, clock=clock)
