"""Loading checkpoints: strict, without pickles, with errors that say what to do."""

import pytest
import torch
from safetensors.torch import save_file

from accel.errors import AccelError
from accel.models import TESTBED, load_model, random_model, save_model
from accel.models.checkpoint import match_state


@pytest.fixture
def model():
    return random_model(TESTBED, torch.Generator().manual_seed(1))


def equal(a, b) -> bool:
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


def test_save_and_load_is_the_identity(model, tmp_path):
    save_model(model, tmp_path / "m.safetensors", training="{}")
    again = load_model(tmp_path / "m.safetensors")
    assert again.config == model.config and equal(model, again) and not again.training
    assert not (tmp_path / "m.safetensors.tmp").exists()


def test_random_model_is_deterministic_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    assert equal(load_model("random:testbed"), load_model("random:testbed"))
    assert torch.equal(state, torch.get_rng_state())


def test_entries_of_the_track_head_are_named_as_unused(model):
    state = model.state_dict() | {"track_head.x": torch.zeros(1)}
    assert match_state(model, state, "here")[1] == ["track_head.x"]


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "nan", "inf"])
def test_a_foreign_or_damaged_state_is_refused(model, damage):
    state = dict(model.state_dict())
    name = "camera_head.token_norm.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unknown":
        state["encoder.weight"] = torch.zeros(2)
    elif damage == "shape":
        state[name] = torch.zeros(3)
    else:
        state[name] = torch.full_like(state[name], float(damage))
    with pytest.raises(AccelError, match="non-finite" if damage in ("nan", "inf") else "not a checkpoint of this VGGT"):
        match_state(model, state, "here")


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors here")
    (tmp_path / "a.pt").write_bytes(b"no tensors here")
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    torch.save({"x": 3}, tmp_path / "b.pt")
    torch.save({"x": torch.zeros(2), 1: torch.zeros(1)}, tmp_path / "c.pt")
    torch.save({"x": torch.zeros(2)}, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.pt").touch()
    save_file({"weight": torch.zeros(2)}, tmp_path / "c.safetensors", metadata={"config": "{not json"})
    for name, message in [
        ("c.pt", "does not hold a state dict"),
        ("d.pt", "not a file of torch.save in its present format"),
        ("empty.pt", "the file is empty"),
        ("c.safetensors", r"c\.safetensors.*not JSON"),
        ("a.safetensors", "not a readable safetensors"),
        ("a.pt", "not a checkpoint of tensors"),
        ("b.safetensors", "not a checkpoint of this VGGT"),
        ("b.pt", "does not hold a state dict"),
        ("none.pt", "no weights at"),
        ("random:no", "no configuration"),
    ]:
        with pytest.raises(AccelError, match=message):
            load_model(name if name.startswith("random") else tmp_path / name)


class Payload:
    """Unpickling this object would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_not_executed(tmp_path):
    torch.save({"x": Payload(tmp_path / "written")}, tmp_path / "evil.pt")
    with pytest.raises(AccelError, match="checkpoint of tensors only"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "written").exists()
