"""Parameters from weights alone, against sampled tokens of the same blocks."""

import json

import numpy as np
import pytest
from scipy.special import ndtr

from meanfield.params import RankParams
from meanfield.predict import predict_rank
from meanfield.weights import weight_fields
from tests import tolerances as tol

CHANNELS, HEADS, LAYERS, DIM = 32, 2, 2, 16


def state_dict(seed=0, layers=LAYERS):
    """Random weights of `layers` frame and global blocks under the official names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "norm1.weight": (CHANNELS,),
        "norm1.bias": (CHANNELS,),
        "attn.qkv.weight": (3 * CHANNELS, CHANNELS),
        "attn.qkv.bias": (3 * CHANNELS,),
        "attn.q_norm.weight": (DIM,),
        "attn.q_norm.bias": (DIM,),
        "attn.k_norm.weight": (DIM,),
        "attn.k_norm.bias": (DIM,),
        "attn.proj.weight": (CHANNELS, CHANNELS),
        "attn.proj.bias": (CHANNELS,),
        "ls1.gamma": (CHANNELS,),
        "norm2.weight": (CHANNELS,),
        "norm2.bias": (CHANNELS,),
        "mlp.fc1.weight": (4 * CHANNELS, CHANNELS),
        "mlp.fc1.bias": (4 * CHANNELS,),
        "mlp.fc2.weight": (CHANNELS, 4 * CHANNELS),
        "mlp.fc2.bias": (CHANNELS,),
        "ls2.gamma": (CHANNELS,),
    }
    return {
        f"aggregator.{kind}_blocks.{i}.{name}": rng.standard_normal(shape) / np.sqrt(shape[-1])
        for kind in ("frame", "global")
        for i in range(layers)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def weights():
    return state_dict()


def normed(x, gain, bias):
    x = x - x.mean(-1, keepdims=True)
    return gain * x / x.std(-1, keepdims=True) + bias


def block(weights, name):
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def test_logit_variance_of_sampled_tokens(weights):
    """Gaussian tokens through the block's own LayerNorms: the row variance of their logits, averaged over rows."""
    rng, fields = np.random.default_rng(1), weight_fields(weights, heads=HEADS)
    w = block(weights, "aggregator.global_blocks.1")
    x = w["norm1.weight"] * rng.standard_normal((4000, CHANNELS)) + w["norm1.bias"]
    projected = (x @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).reshape(-1, 3, HEADS, DIM)
    for head in range(HEADS):
        q = normed(projected[:, 0, head], w["attn.q_norm.weight"], w["attn.q_norm.bias"])
        k = normed(projected[:, 1, head], w["attn.k_norm.weight"], w["attn.k_norm.bias"])
        variance = (q @ k.T / np.sqrt(DIM)).var(1).mean()
        predicted = fields["kappa"][1, head] ** 2 / fields["sphere_dim"][1, head]
        assert predicted == pytest.approx(variance, rel=tol.MEANFIELD_WEIGHTS_NORM)
    assert np.all((fields["sphere_dim"] >= 2) & (fields["sphere_dim"] <= DIM))


def test_gain_and_coherence_of_known_maps(weights):
    """V = I: W_v = W_o = 1 and LayerScale .5 give the gain .5 sqrt(C) in units of |x|, coherence 1."""
    plain = dict(weights)
    for kind in ("frame", "global"):
        for i in range(LAYERS):
            name = f"aggregator.{kind}_blocks.{i}"
            plain[f"{name}.norm1.weight"] = np.ones(CHANNELS)
            plain[f"{name}.ls1.gamma"] = np.full(CHANNELS, 0.5 * (2.0**i))
            plain[f"{name}.attn.proj.weight"] = np.eye(CHANNELS)
            plain[f"{name}.attn.qkv.weight"] = np.concatenate([np.ones((2 * CHANNELS, CHANNELS)), np.eye(CHANNELS)])
            plain[f"{name}.attn.qkv.weight"][: 2 * CHANNELS, 0] = np.arange(2 * CHANNELS)
    found = weight_fields(plain, heads=HEADS)["recursion"]
    assert found.gain_global == pytest.approx(0.5 * np.sqrt(CHANNELS), rel=tol.MEANFIELD_EXACT)
    assert found.gain_growth == pytest.approx(np.log(2.0), rel=tol.MEANFIELD_EXACT)
    assert found.coherence == pytest.approx(1.0, rel=tol.MEANFIELD_EXACT)


def test_noise_of_the_mlp_by_sampling(weights):
    """With orthogonal rows of fc1 the hidden units are independent, as the formula takes them to be."""
    rng, plain = np.random.default_rng(2), dict(weights)
    expected = np.zeros(2)
    for kind in ("frame", "global"):
        for i in range(LAYERS):
            name = f"aggregator.{kind}_blocks.{i}"
            up = np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)))[0]
            plain[f"{name}.norm2.weight"] = np.ones(CHANNELS)
            plain[f"{name}.mlp.fc1.weight"] = np.concatenate([up, np.zeros((3 * CHANNELS, CHANNELS))])
            w = block(plain, name)
            u = rng.standard_normal((20000, CHANNELS)) + w["norm2.bias"]
            h = u @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
            y = w["ls2.gamma"] * ((h * ndtr(h)) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
            value = w["attn.qkv.weight"][2 * CHANNELS :] @ w["norm1.bias"] + w["attn.qkv.bias"][2 * CHANNELS :]
            bias = w["ls1.gamma"] * (w["attn.proj.weight"] @ value + w["attn.proj.bias"])
            expected += [(y.mean(0) ** 2).sum() + bias @ bias, y.var(0).sum()]
    found = weight_fields(plain, heads=HEADS)["recursion"]
    assert [found.noise_mean, found.noise_token] == pytest.approx(expected / LAYERS, rel=tol.MEANFIELD_WEIGHTS_NOISE)


def test_prediction_from_weights(weights):
    params = RankParams.from_weights(weights, heads=HEADS, tokens_per_frame=20, name="random")
    found = predict_rank(LAYERS, 200, params=params)
    assert np.isfinite(found.attention_effective_rank).all() and found.attrs["interval"].startswith("none")
    again = RankParams.from_dict(json.loads(params.to_json()))
    assert again.to_dict() == params.to_dict()
    sphere = np.log(200) - params.sphere_deficit.mean(1)
    assert found.entropy.values == pytest.approx(sphere, rel=tol.MEANFIELD_ROUNDING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregator.global_blocks.0.attn.q_norm.weight": None}, r"lack aggregator\.global_blocks\.0\.attn\.q_norm"),
        ({"aggregator.global_blocks.1.norm1.weight": None}, "2 frame and 1 global blocks"),
        ({"aggregator.global_blocks.0.ls1.gamma": np.full(CHANNELS, np.inf)}, r"ls1\.gamma contains inf"),
    ],
)
def test_incomplete_weights_are_named(weights, change, message):
    changed = {key: value for key, value in {**weights, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        weight_fields(changed, heads=HEADS)


def test_a_wrong_number_of_heads_is_named(weights):
    with pytest.raises(ValueError, match="heads=3 does not divide C=32"):
        weight_fields(weights, heads=3)
