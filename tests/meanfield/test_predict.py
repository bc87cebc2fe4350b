"""RankParams, presets, predict_rank and predict_spectrum."""

import time
from dataclasses import replace

import numpy as np
import pytest

import meanfield
import meanfield.sphere
from meanfield import head_laws, ranks
from meanfield import params as params_module
from meanfield.params import Probe, RankParams, preset
from meanfield.recursion import Recursion, rollout
from tests import tolerances as tol
from tests.meanfield.dense import sphere_singular_values

LAYERS, HEADS, DIM, PER_FRAME = 5, 2, 16, 40
KAPPAS = np.linspace(3.0, 4.5, LAYERS * HEADS).reshape(LAYERS, HEADS)


@pytest.fixture(scope="module")
def arrays():
    """A probe of 4 and 2 frames of a model whose heads are spheres and whose residual stream is the recursion."""
    rng = np.random.default_rng(0)
    spectra = {
        frames: np.array(
            [[sphere_singular_values(rng, frames * PER_FRAME, DIM, kappa) for kappa in row] for row in KAPPAS]
        )
        for frames in (2, 4)
    }
    deficit = np.vectorize(lambda kappa: meanfield.sphere.entropy_deficit(kappa, DIM))(KAPPAS)
    energies = rollout(Recursion(0.3, 0.2, 0.8, 0.01, 0.01, 0.02), [0.2, 0.2, 0.6], LAYERS, 4, PER_FRAME)
    return {
        "singular_values": spectra[4],
        "frames": 4,
        "small_singular_values": spectra[2],
        "small_frames": 2,
        "tokens_per_frame": PER_FRAME,
        "head_dim": DIM,
        "entropy": np.log(4 * PER_FRAME) - deficit,
        "token_energies": energies,
        "token_effective_rank": np.linspace(60.0, 30.0, LAYERS),
    }


@pytest.fixture(scope="module")
def probed(arrays):
    return RankParams.from_probe(arrays)


def test_vggt_init_is_the_sphere_at_kappa_8():
    dataset = meanfield.predict_rank(24, 5000)
    assert dict(dataset.sizes) == {"layer": 24}
    sphere = meanfield.sphere_ranks(5000, 8.0, 64)
    for name in ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio"):
        assert dataset[f"attention_{name}"].values == pytest.approx(float(sphere[name]), rel=tol.MEANFIELD_ROUNDING)
    assert dataset.attrs["method"] == "finite-N sphere law" and not dataset.condensed.any()
    assert dataset.entropy.values == pytest.approx(np.log(5000) - meanfield.sphere.entropy_deficit(8.0, 64))


def test_layerscale_of_a_hundredth_leaves_no_power_law():
    """2.2 B: 24 layers at initialisation are pre-asymptotic, the spread does not move."""
    dataset = meanfield.predict_rank(24, 1e5)
    assert abs(float(dataset.depth_exponent)) < 1e-2 and dataset.attrs["depth_exponent_reference"] == 1.0
    assert dataset.spread_reference[-1] == dataset.spread[-1]


def test_every_variable_says_what_it_is_and_arrays_of_tokens_add_a_dimension():
    tokens = np.array([100.0, 5000.0, 1e6])
    dataset = meanfield.predict_rank(3, tokens)
    for variable in dataset.variables.values():
        assert variable.attrs["long_name"] and variable.attrs["units"]
    assert dataset.attention_effective_rank.dims == ("layer", "tokens") and dataset.depth_exponent.dims == ("tokens",)
    one = meanfield.predict_rank(3, 5000)
    for name in one.data_vars:
        column = dataset[name].sel(tokens=5000)
        assert column.values == pytest.approx(one[name].values, rel=tol.MEANFIELD_GRID, nan_ok=True), name


def test_condensed_rows_are_flagged():
    dataset = meanfield.predict_rank(2, np.array([4.0, 100.0]))
    assert dataset.condensed.values.tolist() == [[1.0, 0.0]] * 2


def seconds(call):
    """CPU seconds of the faster of two calls, after one that fills the tables."""
    call()
    times = []
    for _ in range(2):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def many_heads(layers=24, heads=16):
    """Probed parameters of 384 different heads: power-law spectra at 40 and 80 tokens."""
    k = np.arange(1.0, 81.0)
    slope = np.linspace(0.9, 1.6, layers * heads).reshape(layers, heads, 1)
    large, small = k**-slope, k[:40] ** -slope
    base = preset("vggt-init")
    return replace(base, probes=(Probe(40, small), Probe(80, large)))


@pytest.mark.parametrize("name", ["vggt-init", "testbed", "384 probed heads"])
def test_prediction_is_fast(name):
    chosen = many_heads() if name.startswith("384") else preset(name)
    once = seconds(lambda: meanfield.predict_rank(chosen.layers, 1e6, params=chosen))
    assert once < tol.MEANFIELD_CPU_SECONDS
    many = seconds(lambda: meanfield.predict_rank(chosen.layers, np.geomspace(10.0, 1e8, 1000), params=chosen))
    assert many < tol.MEANFIELD_MANY_CPU_SECONDS


@pytest.mark.parametrize("name", ["vggt-init", "testbed"])
def test_the_table_of_laws_is_the_laws(name):
    """All ranks of the presets from N = 2 on, between knots as on them; kinks (a rank reaches N) lie below N = 200."""
    chosen = preset(name)
    laws = (chosen.replicates[0] if chosen.replicates else chosen).laws
    tokens = np.append([2.1, 2.7, 4.5, 6.0, 10.0, 30.0], np.exp(np.linspace(np.log(200.0), np.log(9e8), 20)))
    table = laws.ranks(tokens)
    assert len(laws.unique) * tokens.size > head_laws.DIRECT  # so it was the table
    exact = [law.ranks(tokens) for law in laws.unique]
    for rank in head_laws.RANKS:
        truth = np.stack([found[rank] for found in exact])[laws._where]
        assert table[rank][..., 6:] == pytest.approx(truth[..., 6:], rel=tol.MEANFIELD_TABLE), rank
        assert table[rank][..., :6] == pytest.approx(truth[..., :6], rel=tol.MEANFIELD_TABLE_KINK), rank


@pytest.mark.filterwarnings("error")
def test_no_number_of_tokens_overflows():
    for name in ("testbed", "vggt-init"):
        tokens = np.array([1e12, 1e300])
        found = meanfield.predict_rank(2, tokens, params=name)
        assert (found.attention_effective_rank <= tokens).all() and np.isfinite(found.attention_effective_rank).all()
        assert np.isfinite(meanfield.predict_spectrum(name, 1e12, k=2).singular_value).all()


def test_heads_without_a_calibrated_tail_are_counted():
    found = meanfield.predict_rank(6, 1000, params="testbed")
    members = preset("testbed").replicates
    missed = [not law.calibrated for member in members for law in member.laws.unique]
    assert found.attrs["uncalibrated"] == np.mean(missed) > 0.0
    assert meanfield.predict_rank(2, 1000).attrs["uncalibrated"] == 0.0


def test_probed_parameters_predict_more_frames(probed):
    """Against dense matrices of the same spheres at 16 frames, and the exact recursion."""
    rng = np.random.default_rng(9)
    dataset = meanfield.predict_rank(LAYERS, 16 * PER_FRAME, params=probed)
    truth = [
        np.mean([ranks.effective_rank(sphere_singular_values(rng, 16 * PER_FRAME, DIM, kappa)) for kappa in row])
        for row in KAPPAS[[0, -1]]
    ]
    assert dataset.attention_effective_rank.values[[0, -1]] == pytest.approx(truth, rel=tol.MEANFIELD_TWO_PROBES)
    assert dataset.attrs["method"] == "finite-N law from two probes"
    assert probed.kappa == pytest.approx(KAPPAS, rel=1e-6)


def test_probed_tokens_at_the_probe_are_the_measured_ones(arrays, probed):
    dataset = meanfield.predict_rank(LAYERS, 4 * PER_FRAME, params=probed)
    assert dataset.token_effective_rank.values == pytest.approx(arrays["token_effective_rank"], rel=tol.MEANFIELD_EXACT)
    energies = arrays["token_energies"][1:]
    g = (4 * PER_FRAME) / (4 * PER_FRAME - 1) * energies[:, 1:].sum(-1) / energies.sum(-1)
    assert dataset.spread.values == pytest.approx(g, rel=tol.MEANFIELD_EXACT)


def test_spectrum_has_the_schema_of_measure_spectra(arrays, probed):
    for chosen, shape in ((probed, (LAYERS, HEADS, 6)), ("vggt-init", (24, 16, 6))):
        dataset = meanfield.predict_spectrum(chosen, 320, k=6)
        assert dataset.singular_value.shape == shape and dataset.singular_value.dims == ("layer", "head", "k")
        for name in (
            "frobenius", "stable_rank", "participation_ratio", "effective_rank", "effective_rank_energy", "entropy"
        ):  # fmt: skip
            assert dataset[name].dims == ("layer", "head") and dataset[name].attrs["long_name"]
        assert np.all(np.diff(dataset.singular_value.values, axis=-1) <= 0.0)
    same = meanfield.predict_spectrum(probed, 4 * PER_FRAME, k=6).singular_value.values
    assert same == pytest.approx(arrays["singular_values"][..., :6], rel=1e-5)


def test_json_round_trip(probed):
    for chosen in (probed, preset("vggt-init")):
        assert RankParams.from_json(chosen.to_json()).to_dict() == chosen.to_dict()
    again = meanfield.predict_rank(LAYERS, 1000, params=RankParams.from_json(probed.to_json()))
    assert again.equals(meanfield.predict_rank(LAYERS, 1000, params=probed))


def test_fewer_layers_are_the_first_ones(probed):
    whole = meanfield.predict_rank(LAYERS, 640, params=probed)
    first = meanfield.predict_rank(3, 640, params=probed)
    for name in ("attention_effective_rank", "spread", "entropy"):
        assert first[name].values.tolist() == whole[name].values[:3].tolist()


def test_more_layers_only_when_all_are_alike(probed):
    assert meanfield.predict_rank(30, 1000).sizes["layer"] == 30
    with pytest.raises(ValueError, match=f"L=6 exceeds the {LAYERS} layers"):
        meanfield.predict_rank(6, 1000, params=probed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meanfield.predict_rank(0, 100), "L=0"),
        (lambda: meanfield.predict_rank(2.5, 100), r"L=2\.5"),
        (lambda: meanfield.predict_rank(2, -100), "N=-100"),
        (lambda: meanfield.predict_rank(2, np.nan), "nan"),
        (lambda: meanfield.predict_rank(2, [[10, 20]]), "vector"),
        (lambda: meanfield.predict_rank(2, 100, params="vggt"), "'vggt' is not a preset"),
        (lambda: meanfield.predict_spectrum("vggt-init", 100, k=0), "k=0"),
        (lambda: meanfield.predict_spectrum("vggt-init", [10, 20]), "one number"),
        (lambda: meanfield.predict_spectrum("vggt-init", 100, k=2.5), r"k=2\.5"),
        (lambda: meanfield.predict_rank(np.inf, 100), "L contains inf"),
        (lambda: meanfield.predict_rank(None, 100), "L"),
        (lambda: meanfield.predict_rank([3], 100), "L has shape"),
        (lambda: meanfield.predict_rank(2, 10**400), "N=1000"),
        (lambda: meanfield.predict_rank(2, 100, level=[0.9, 0.95]), "level has shape"),
        (lambda: meanfield.predict_rank(2, 100, params=None), "params is a NoneType"),
        (lambda: meanfield.predict_rank(2, 100, params=3), "params is a int"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_floats_are_whole_numbers():
    assert meanfield.predict_rank(2.0, 1000.0).equals(meanfield.predict_rank(2, 1000))
    assert meanfield.predict_spectrum("vggt-init", 1000, k=2.0).sizes["k"] == 2


def test_a_missing_preset_file_says_how_to_make_it(tmp_path):
    for path in (tmp_path / "testbed.json", str(tmp_path / "testbed.json")):
        with pytest.raises(ValueError, match=r"RankParams\.from_probe"):
            params_module.load_params(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entropy": None}, "misses"),
        ({"small_frames": None}, "together"),
        ({"small_frames": 6}, "smaller first"),
        ({"token_energies": np.ones((3, 3))}, "token_energies have shape"),
        ({"entropy": np.full((LAYERS, HEADS), 9.0)}, "ln N"),
        ({"frames": 1}, "2|tokens"),
        ({"token_effective_rank": np.ones(2)}, "one per layer"),
        ({"small_entropy": np.full((LAYERS, HEADS), 9.0)}, "small_entropy=9"),
    ],
)
def test_inconsistent_probes_are_named(arrays, change, message):
    changed = {key: value for key, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        RankParams.from_probe(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa": np.zeros((2, 2))}, "kappa=0"),
        ({"token_dim": np.ones(3)}, "one per layer"),
        ({"start": (0.0, 0.0, 0.0)}, "not all zero"),
        ({"head_dim": 1}, "head_dim=1"),
        ({"entropy": np.ones((24, 16))}, "together"),
        ({"small_entropy": np.ones((24, 16))}, "smaller of two probes"),
        ({"sphere_dim": np.ones((24, 16))}, "sphere_dim=1"),
        ({"sphere_dim": np.full((2, 2), 8.0)}, "sphere_dim has shape"),
        ({"head_dim": np.nan}, "head_dim contains nan"),
        ({"head_dim": 2.5}, r"head_dim=2\.5 is not a whole"),
        ({"tokens_per_frame": 64.5}, r"tokens_per_frame=64\.5 is not a whole"),
        ({"tokens_per_frame": np.inf}, "tokens_per_frame contains inf"),
        ({"entropy": np.ones((24, 16)), "entropy_tokens": np.nan}, "entropy_tokens contains nan"),
        ({"entropy": np.ones((24, 16)), "entropy_tokens": 0}, "entropy_tokens=0"),
        ({"energies": np.zeros((24, 3))}, "in energies=0"),
        ({"energies": np.full((24, 3), 1e308)}, r"energies=1e\+308"),
        ({"start": (1e-320, 0.0, 0.0)}, "in start="),
        ({"recursion": None}, "RankParams JSON"),
        ({"recursion": {"colour": 1.0}}, "colour"),
        ({"probes": None}, "RankParams JSON"),
        ({"probes": [1]}, "RankParams JSON"),
        ({"probes": [{"tokens": "a", "values": np.ones((24, 16, 8))}]}, "tokens='a'"),
        ({"replicates": [3, 4]}, "JSON holds a int"),
    ],
)
def test_inconsistent_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RankParams.from_dict({**preset("vggt-init").to_dict(), **change})


def test_fields_of_another_type_are_named():
    for change in ({"recursion": None}, {"probes": None}, {"probes": (1,)}, {"replicates": (3, 4)}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} is a "):
            replace(preset("vggt-init"), **change)


@pytest.mark.parametrize(("text", "message"), [("", "not JSON"), ("nonsense", "not JSON"), ("null", "NoneType")])
def test_text_that_is_no_parameters_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        RankParams.from_json(text)


def test_json_with_other_keys_is_named():
    data = preset("vggt-init").to_dict()
    with pytest.raises(ValueError, match=r"missing \['kappa'\], unknown \['colour'\]"):
        RankParams.from_dict({**{key: value for key, value in data.items() if key != "kappa"}, "colour": 1})


def test_the_entropy_grows_at_the_rate_between_two_probes(arrays):
    small = arrays["entropy"] - 0.8 * np.log(2.0)
    params = RankParams.from_probe({**arrays, "small_entropy": small})
    found = meanfield.predict_rank(LAYERS, 16 * PER_FRAME, params=params).entropy
    assert found.values == pytest.approx((arrays["entropy"] + 1.6 * np.log(2.0)).mean(1), rel=tol.MEANFIELD_ROUNDING)


def test_probes_of_several_scenes(arrays, tmp_path):
    """The mean of the arrays gives the parameters, the scenes are kept, and JSON keeps them too."""
    other = {**arrays, "entropy": arrays["entropy"] - 0.2, "token_energies": 2.0 * arrays["token_energies"]}
    params = RankParams.from_probes([arrays, other], name="two")
    assert [replicate.name for replicate in params.replicates] == ["two 0", "two 1"]
    assert params.entropy == pytest.approx(arrays["entropy"] - 0.1, rel=tol.MEANFIELD_ROUNDING)
    assert params.replicates[0].recursion == params.recursion and len(params.first(2).replicates) == 2
    (tmp_path / "two.json").write_text(params.to_json())
    again = params_module.load_params(tmp_path / "two.json")
    assert again.to_dict() == params.to_dict()
    assert meanfield.predict_rank(LAYERS, 900, params=again).equals(meanfield.predict_rank(LAYERS, 900, params=params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 8}, "differ in frames: 4 and 8"),
        ({"entropy": np.ones((1, 1))}, "shape of entropy"),
        ({"channels": 4}, r"entries \['channels'\]"),
    ],
)
def test_probes_of_several_scenes_must_be_alike(arrays, change, message):
    with pytest.raises(ValueError, match=message):
        RankParams.from_probes([arrays, {**arrays, **change}])
    with pytest.raises(ValueError, match="no probe"):
        RankParams.from_probes([])
