"""VGGT against the official code, and the memory it may use."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from accel.errors import AccelError
from accel.models import TESTBED, VGGT, VGGT_1B, VGGTConfig, random_model
from accel.models.config import PARITY_SMALL
from accel.models.pose import decode_pose, encode_pose, matrix_to_quaternion, quaternion_to_matrix
from accel.patch import patch
from accel.policies import Merge
from tests import tolerances

PARITY = Path(__file__).parent.parent / "data" / "vggt_parity"


def parity_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """The weight rule of the parity data: tests/data/vggt_parity/README.md."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("gamma"):
        n = 0.5 + 0.1 * n
    elif len(shape) == 1:
        n = 1 + 0.1 * n if name.endswith("weight") else 0.02 * n
    elif name.endswith("token") or "pos_embed" in name or "tokens" in name:
        n = 0.1 * n
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(n).float()


@pytest.fixture(scope="module")
def parity():
    shapes = json.loads((PARITY / "vggt_small_state_dict.json").read_text())
    model = VGGT(PARITY_SMALL).eval()
    model.load_state_dict({k: parity_tensor(k, shapes[k]) for k in model.state_dict()})
    images = torch.from_numpy(np.random.RandomState(7).uniform(size=(1, 3, 3, 42, 56))).float()
    with torch.no_grad():
        kept = model.aggregator(images)
        outputs = model(images)
    outputs |= {f"tokens_{layer}": x for layer, x in kept.items()}
    with np.load(PARITY / "vggt_small_reference.npz") as reference:
        return outputs, {k: torch.from_numpy(reference[k]) for k in reference}


def test_outputs_agree_with_the_official_code(parity):
    outputs, reference = parity
    assert outputs.keys() == reference.keys()
    for name, expected in reference.items():
        error = (outputs[name] - expected).norm() / expected.norm()
        assert error < tolerances.PARITY_RELATIVE, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("file", "config", "unused"),
    [("vggt_small_state_dict.json", PARITY_SMALL, 1), ("vggt_1b_state_dict.json", VGGT_1B, None)],
)
def test_every_official_entry_is_loaded_or_named_as_unused(file, config, unused):
    from accel.models.checkpoint import DELIBERATELY_UNUSED, match_state

    shapes = json.loads((PARITY / file).read_text())
    with torch.device("meta"):
        model = VGGT(config)
        state = {k: torch.empty(shape) for k, shape in shapes.items()}
    tensors, left_out = match_state(model, state, file)
    assert set(tensors) | set(left_out) == set(shapes)
    assert all(name.startswith(tuple(DELIBERATELY_UNUSED)) for name in left_out)
    assert unused is None or len(left_out) == unused


def test_heads_run_in_chunks_with_the_same_result():
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    images = torch.rand(1, 5, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model(images)
        model.frames_per_chunk = 2
        chunked = model(images)
    for name in whole:
        torch.testing.assert_close(whole[name], chunked[name], **tolerances.SAME_ARITHMETIC)


def test_only_the_layers_that_heads_read_are_kept():
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    with torch.no_grad():
        kept = model.aggregator(torch.rand(1, 2, 3, 64, 64))
    assert tuple(kept) == TESTBED.kept_layers == (1, 2, 4, 5)


def test_layout_matches_the_tokens():
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    images = torch.rand(1, 2, 3, 64, 48)
    layout = model.layout(images)
    with torch.no_grad():
        kept = model.aggregator(images)[1]
    assert (layout.frames, layout.tokens_per_frame) == tuple(kept.shape[1:3])


@pytest.mark.parametrize("shape", [(1, 2, 3, 60, 64), (2, 3, 64, 64), (1, 2, 1, 64, 64)])
def test_bad_image_shapes_are_refused(shape):
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    with pytest.raises(AccelError):
        model(torch.rand(shape))


def test_config_round_trip_and_validation():
    assert VGGTConfig.from_json(TESTBED.to_json()) == TESTBED
    with pytest.raises(AccelError, match="unknown fields"):
        VGGTConfig.from_json('{"colour": 3}')
    with pytest.raises(AccelError, match="reads beyond"):
        VGGTConfig(depth=4)
    with pytest.raises(AccelError, match="multiple of patch_size"):
        VGGTConfig(image_size=100)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"num_heads": 0}', "num_heads=0"),
        ('{"depth": true}', "depth=True"),
        ('{"embed_dim": "x"}', "embed_dim='x'"),
        ('{"rope_base": NaN}', "rope_base=nan"),
        ('{"dpt_layers": 5}', "dpt_layers=5"),
        ('{"dpt_scales": ["a", 1, 1, 1]}', "dpt_scales="),
        ('{"vit_stem": 3}', "vit_stem=3"),
    ],
)
def test_a_damaged_config_is_refused(text, match):
    with pytest.raises(AccelError, match=match):
        VGGTConfig.from_json(text)


def test_pose_encoding_round_trip():
    generator = torch.Generator().manual_seed(3)
    q = torch.nn.functional.normalize(torch.randn(200, 4, generator=generator, dtype=torch.float64), dim=-1)
    q = torch.where(q[:, 3:] < 0, -q, q)
    torch.testing.assert_close(matrix_to_quaternion(quaternion_to_matrix(q)), q, **tolerances.ROUNDING_F64)
    extrinsics = torch.cat([quaternion_to_matrix(q), torch.randn(200, 3, 1, generator=generator).double()], -1)
    fov = torch.full((200,), 0.9, dtype=torch.float64)
    decoded, intrinsics = decode_pose(encode_pose(extrinsics, fov, fov), 48, 64)
    torch.testing.assert_close(decoded, extrinsics, **tolerances.ROUNDING_F64)
    assert intrinsics[0, 0, 0].item() == pytest.approx(32 / np.tan(0.45))


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5])
def test_a_global_layer_is_one_attention_call_whatever_the_chunk(chunk):
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    images = torch.rand(2, 4, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    schedule = SimpleNamespace(layout=model.layout(images), policies=(Merge(0.35, reuse=5),) * TESTBED.depth)
    with torch.no_grad():
        with patch(model, schedule):
            whole = model(images)
        model.frames_per_chunk = chunk
        with patch(model, schedule) as applied:
            chunked = model(images)
    assert applied.calls == [1] * TESTBED.depth
    for name in whole:
        torch.testing.assert_close(whole[name], chunked[name], **tolerances.SAME_ARITHMETIC)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "3", True])
def test_a_bad_chunk_is_refused(chunk):
    model = random_model(TESTBED, torch.Generator().manual_seed(1))
    model.frames_per_chunk = chunk
    with pytest.raises(AccelError, match="frames_per_chunk"), torch.no_grad():
        model(torch.rand(1, 2, 3, 64, 48))
