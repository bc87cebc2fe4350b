"""Names, JSON and costs that all policies share."""

import pytest

from accel.errors import AccelError
from accel.policies import Cost, Exact, Frame, Subsample, policy_from_dict, registry


def test_registry_and_unknown_names():
    assert {"exact": Exact, "frame": Frame, "subsample": Subsample}.items() <= registry().items()
    with pytest.raises(AccelError, match=r"'sparse' is not one of \['block_sparse'"):
        policy_from_dict({"policy": "sparse"})
    with pytest.raises(AccelError, match="None is not one of"):
        policy_from_dict({})
    with pytest.raises(AccelError, match=r"'subsample' has no field 'ratio'; its fields are \['fill'"):
        policy_from_dict({"policy": "subsample", "ratio": 2})
    assert policy_from_dict({"policy": "subsample", "stride": 6}) == Subsample(window=(2, 3))


def test_two_policies_of_one_name_are_refused():
    cls = type("Again", (Exact,), {"name": "exact"})
    with pytest.raises(AccelError, match="rename"):
        registry()
    cls.name = "again"
    del cls.name  # no longer a policy of its own
    registry()


def test_costs_add_and_scale():
    assert Cost(1, 2) + 2 * Cost(3, 4) == Cost(7, 10)
