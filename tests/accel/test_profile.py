"""The probe: statistics against dense float64 twins, the exchangeability law, outputs compared, files."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.checkpoint import random_model
from accel.models.config import TESTBED, VGGTConfig
from accel.options import default_options
from accel.outputs import output_difference
from accel.patch import observe, patch, record
from accel.policies import Exact, Frame, Subsample
from accel.predictors import TheoryPredictor
from accel.profile import Profile, probe
from accel.schedule import exact_schedule
from accel.sensitivity import reduced
from accel.statistics import (
    CLASSES,
    VECTORS,
    mean_statistics,
    option_errors,
    query_statistics,
    sample_queries,
    token_energies,
)
from tests.tolerances import EXACT_STATISTICS, STORED_STATISTICS

LAYOUT = TokenLayout(4, 3, 4, 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def qkv(layout=LAYOUT, heads=2, dim=8, seed=0):
    return torch.randn(3, heads, layout.tokens, dim, generator=generator(seed), dtype=torch.float64).unbind(0)


def tiny(depth=4):
    values = {name: getattr(TESTBED, name) for name in TESTBED.__dataclass_fields__}
    values |= {"image_size": 32, "embed_dim": 32, "depth": depth, "num_heads": 2, "vit_depth": 1, "vit_heads": 2}
    values |= {"dpt_layers": (0, 1, depth - 1, depth - 1), "dpt_features": 16, "dpt_channels": (8, 8, 8, 8)}
    return random_model(VGGTConfig(**values), generator(5))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 6, 3, 32, 32, generator=generator(1))


@pytest.fixture(scope="module")
def profile(model, images):
    return probe(model, images, queries=32, generator=generator(), progress=False)


def naive_class(layout, i, j):
    P = layout.tokens_per_frame
    kind = "special" if j % P < layout.special else "patch"
    group = "own" if i // P == j // P else "first" if j < P else "other"
    return "self" if i == j else f"{group}_{kind}"


def test_class_statistics_against_a_dense_loop():
    q, k, v = qkv(heads=1)
    queries = sample_queries(LAYOUT, 4, generator())
    found = query_statistics(q, k, v, LAYOUT, queries)
    A = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    for h in range(1):
        for row, i in enumerate(queries.tolist()):
            members = {a: [j for j in range(LAYOUT.tokens) if naive_class(LAYOUT, i, j) == a] for a in CLASSES}
            vectors = {}
            for a, js in members.items():
                mass = sum(A[h, i, j] for j in js)
                vectors[a] = sum(A[h, i, j] * v[h, j] for j in js) / mass if js else torch.zeros(8).double()
                assert found["mass"][h, row, CLASSES.index(a)] == pytest.approx(float(mass), abs=EXACT_STATISTICS)
            outside = LAYOUT.grid()[1:].flatten()
            vectors |= {"mean": v[h].mean(0), "patch_mean": v[h, outside].mean(0)}
            stack = torch.stack([vectors[name] for name in VECTORS])
            torch.testing.assert_close(found["gram"][h, row], stack @ stack.T, atol=EXACT_STATISTICS, rtol=0)
            logit = (A[h, i].log())[outside].mean()
            assert found["patch_logit"][h, row] == pytest.approx(float(logit), abs=EXACT_STATISTICS)


def test_sampled_queries_cover_every_frame_and_follow_the_generator():
    a, b = sample_queries(LAYOUT, 13, generator(2)), sample_queries(LAYOUT, 13, generator(2))
    assert torch.equal(a, b) and len(set(a.tolist())) == 12
    assert np.bincount(a // LAYOUT.tokens_per_frame).tolist() == [3, 3, 3, 3]
    assert len(sample_queries(LAYOUT, 10**6, generator())) == LAYOUT.tokens


def test_mean_statistics_against_all_logits():
    q, k, _ = qkv(seed=3)
    q, k = q + 0.5, k - 0.3
    logits = q @ k.mT / 8**0.5
    found = mean_statistics(q, k)
    assert torch.allclose(found["logit_mean"], logits.mean((1, 2)), atol=EXACT_STATISTICS)
    assert torch.allclose(found["logit_variance"], logits.var(-1, correction=0).mean(-1), atol=EXACT_STATISTICS)
    expected = q.mean(1).square().sum(-1) / q.square().sum(-1).mean(-1)
    assert torch.allclose(found["query_mean"], expected, atol=EXACT_STATISTICS)


def test_token_energies_add_up():
    x = torch.randn(LAYOUT.tokens, 5, generator=generator(4)).double() + 1
    mean, between, within = token_energies(x, LAYOUT)
    assert mean + between + within == pytest.approx(x.square().sum(-1).mean().item(), rel=EXACT_STATISTICS)
    repeated = x[: LAYOUT.tokens_per_frame].repeat(4, 1)
    assert token_energies(repeated, LAYOUT)[1] == pytest.approx(0, abs=EXACT_STATISTICS)


def test_option_errors():
    q, k, v = (x[None] for x in qkv())
    options = [Exact(), Frame(), Subsample(stride=4)]
    A = torch.softmax(q @ k.mT / 8**0.5, -1)
    exact = A @ v
    own = LAYOUT.frame_of()[:, None] == LAYOUT.frame_of()[None]
    frame = (A * own / (A * own).sum(-1, keepdim=True)) @ v
    errors = option_errors(q, k, v, LAYOUT, options)
    assert errors[0] == 0 and errors[2] > 0
    assert errors[1] == pytest.approx(float((frame - exact).norm() / exact.norm()), rel=EXACT_STATISTICS)


def test_probe_measures_what_it_says(model, images, profile):
    data, layout = profile.data, profile.layout
    assert layout == TokenLayout(4, 4, 4, 4) and profile.layers == 4 and profile.heads == 2
    assert profile.options == default_options(layout) and Subsample(stride=16, fill="shrink") in profile.options
    seen = {}
    with torch.no_grad(), record(model, lambda context, q, k, v: seen.__setitem__(context.layer, (q, k, v))):
        model(images[:, :4])
    for layer, (q, k, v) in seen.items():
        A = torch.softmax(q.double() @ k.double().mT / q.shape[-1] ** 0.5, -1)[0]
        s = torch.linalg.svdvals(A)
        assert np.allclose(data["singular_value"][layer], s, atol=STORED_STATISTICS)
        entropy = -torch.special.xlogy(A, A).sum(-1).mean(-1)
        assert np.allclose(data["entropy"][layer], entropy, atol=STORED_STATISTICS)
        assert np.allclose(data["option_error"][layer], option_errors(q, k, v, layout, profile.measured), atol=1e-6)
    assert data.sizes["k_small"] == 2 * layout.tokens_per_frame
    assert data.attrs["seed"] == 0 and all("long_name" in data[name].attrs for name in data.data_vars)


def test_token_energies_are_those_before_and_after_each_pair(model, images, profile):
    tokens, entering = [], []

    def see(i, args, output):
        tokens.append((i, output))
        if i == 0:
            entering.append(args[0])

    trunk = model.aggregator
    with torch.no_grad(), observe([*trunk.frame_blocks, *trunk.global_blocks], see):
        model(images[:, :4])
    after = [out for i, out in tokens if i >= 4]
    found = [token_energies(x.reshape(-1, x.shape[-1]), profile.layout) for x in after]
    assert np.allclose(profile.data["token_energy"][1:], found)
    assert np.allclose(profile.data["token_energy"][0], token_energies(entering[0].flatten(0, 1), profile.layout))


def test_sensitivity_is_the_output_difference_of_one_layer(model, images, profile):
    layout, frames = profile.layout, images[:, :4]
    policies = [Exact()] * 4
    policies[2] = Frame()
    schedule = exact_schedule(layout, 4)
    with torch.no_grad():
        reference = model(frames)
        with patch(model, type(schedule)(layout, policies, *(("",) * 4,), *((0.0,) * 4,) * 3)):
            total = output_difference(reference, model(frames))["total"]
    assert total > 0
    assert float(profile.data["output_error"].sel(kind="frame")[2]) == pytest.approx(total, rel=1e-6)
    error = profile.option_error([Frame()])[2, 0]
    assert profile.sensitivity([Frame(), Subsample(stride=2)])[2, 0] == pytest.approx(total / error, rel=1e-6)
    assert not torch.is_grad_enabled() or not any(m._forward_hooks for m in model.modules())


def test_probe_leaves_global_randomness_alone_and_is_reproducible(model, images, profile):
    state = torch.random.get_rng_state()
    again = probe(model, images, queries=32, generator=generator(), progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    xr.testing.assert_identical(again.data, profile.data)


def test_rank_params_and_files(profile, tmp_path):
    params = profile.rank_params(name="tiny")
    assert params.kappa.shape == (4, 2) and [p.tokens for p in params.probes] == [40, 80]
    profile.save(tmp_path / "profile.nc")
    loaded = Profile.load(tmp_path / "profile.nc")
    xr.testing.assert_identical(loaded.data, profile.data)
    assert loaded.options == profile.options and list(tmp_path.iterdir()) == [tmp_path / "profile.nc"]


def test_options_that_the_layout_forbids_are_left_out(model):
    thin = torch.rand(1, 3, 3, 32, 16, generator=generator())  # a grid of 4 x 2
    found = probe(model, thin, options=[Exact(), Subsample(stride=16), Subsample(stride=4)], queries=8,
                  generator=generator(), progress=False)  # fmt: skip
    assert found.options == (Exact(), Subsample(stride=4)) and Frame() in found.measured


def test_what_a_probe_refuses(model, images, profile, tmp_path):
    for wrong, match in ((images[:, :1], "at least 2"), (images[0], "one scene")):
        with pytest.raises(AccelError, match=match):
            probe(model, wrong, generator=generator(), progress=False)
    with pytest.raises(AccelError, match="was not probed"):
        profile.option_error([Subsample(stride=6)])
    with pytest.raises(AccelError, match="images of that size"):
        profile.check(TokenLayout(8, 4, 5, 4))
    with pytest.raises(AccelError, match="no profile at"):
        Profile.load(tmp_path / "none.nc")


ATTRIBUTES = ("layout", "config", "measured", "candidates", "spectrum_tokens", "small_spectrum_tokens", "small_frames")


@pytest.mark.parametrize("name", [*ATTRIBUTES, "error_term", "entropy", "kind"])
def test_a_damaged_profile_is_refused(profile, tmp_path, name):
    data = profile.data.copy()
    if name in ATTRIBUTES:
        del data.attrs[name]
        with pytest.raises(AccelError, match=r"not a profile of this version.*probe again"):
            Profile(profile.data.assign_attrs({name: "{bad"}))
    else:
        data = data.drop_vars(name)
    data.to_netcdf(tmp_path / "bad.nc", engine="h5netcdf")
    with pytest.raises(AccelError, match=rf"bad\.nc.*{name}.*not a profile of this version; probe again"):
        Profile.load(tmp_path / "bad.nc")


def test_a_profile_with_other_error_terms_is_refused(profile):
    with pytest.raises(AccelError, match=r"not a profile of this version \(error terms \['fixed', 'linear'\]\); probe"):
        Profile(profile.data.isel(term=slice(0, 2)))


def prediction(seed=0):
    g = generator(seed)
    pose = torch.randn(1, 3, 9, generator=g)
    pose[:, 0, :3] = 0
    return {
        "depth": torch.rand(1, 3, 4, 4, 1, generator=g) + 1,
        "world_points": torch.randn(1, 3, 4, 4, 3, generator=g),
        "pose_enc": pose,
    }


def test_output_difference():
    reference = prediction()
    assert output_difference(reference, reference)["total"] == pytest.approx(0, abs=1e-6)
    other = {name: x.clone() for name, x in reference.items()}
    other["depth"] *= 1.1
    other["world_points"] *= 1.2
    other["pose_enc"][..., :3] *= 1.3
    angle = 0.4  # about x: q -> q * (sin, 0, 0, cos)
    x, y, z, w = reference["pose_enc"][..., 3:7].unbind(-1)
    s, c = math.sin(angle / 2), math.cos(angle / 2)
    other["pose_enc"][..., 3:7] = -2 * torch.stack([w * s + x * c, y * c + z * s, z * c - y * s, w * c - x * s], -1)
    found = output_difference(reference, other)
    expected = {"depth": 0.1, "points": 0.2, "rotation": 0.4, "translation": 0.3}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["total"] == pytest.approx((0.1 + 0.2 + 0.35) / 3, rel=1e-5)


def test_output_difference_in_degenerate_cases():
    reference = prediction()
    still = reference | {"pose_enc": reference["pose_enc"].clone()}
    still["pose_enc"][..., :3] = 0
    assert math.isfinite(output_difference(still, reference)["total"])
    broken = reference | {"depth": reference["depth"] * math.nan}
    found = output_difference(reference, broken)
    assert found["depth"] == math.inf and found["total"] == pytest.approx(1 / 3, abs=1e-6)
    with pytest.raises(AccelError, match="NaN or infinity in depth"):
        output_difference(broken, reference)
    with pytest.raises(AccelError, match="same images"):
        output_difference(reference, reference | {"depth": reference["depth"][:, :2]})


def test_a_probe_of_two_frames_describes_two_frames_only(model, images):
    two = probe(model, images, frames=2, generator=generator(), progress=False)
    assert (two.layout.frames, two.data.attrs["small_frames"]) == (2, 1)
    theory, same = TheoryPredictor()(two, two.layout, two.options), two.option_error(two.options)
    np.testing.assert_allclose(theory, same, rtol=EXACT_STATISTICS)
    assert two.rank_params().probes[0].tokens == two.layout.tokens_per_frame
    with pytest.raises(AccelError, match="probe at least 3 frames"):
        TheoryPredictor()(two, replace(two.layout, frames=5), two.options)


def test_a_large_probe_takes_spectra_of_random_tokens_and_reduced_images(model, monkeypatch):
    """With the limit lowered, the same path that a probe of VGGT-1B takes."""
    monkeypatch.setattr("accel.profile.DENSE_UP_TO", 40)
    monkeypatch.setattr("accel.sensitivity.SENSITIVITY_TOKENS", 40)
    images = torch.rand(1, 3, 3, 32, 48, generator=generator(1))
    profile = probe(model, images, frames=3, generator=generator(), progress=False)
    assert profile.layout.tokens == 3 * (4 + 24)
    assert profile.data["singular_value"].shape[-1] == profile.data.attrs["spectrum_tokens"] == 40
    assert profile.data["small_singular_value"].shape[-1] == profile.data.attrs["small_spectrum_tokens"] == 20
    assert [p.tokens for p in profile.rank_params().probes] == [20, 40]
    small = reduced(model, images, profile.layout)
    assert tuple(small.shape) == (1, 3, 3, 32, 32) and 0 <= float(small.min()) <= float(small.max()) <= 1
    frame = (Exact(), Exact(), Frame(), Exact())
    schedule = SimpleNamespace(layout=model.layout(small), policies=frame)
    with torch.no_grad():
        exact = model(small)
        with patch(model, schedule):
            total = output_difference(exact, model(small))["total"]
    assert float(profile.data["output_error"].sel(kind="frame")[2]) == pytest.approx(total, rel=1e-6)
