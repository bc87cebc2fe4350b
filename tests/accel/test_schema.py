"""predict_spectrum has the schema of measure_spectra, and predict_rank the house rules for every Dataset."""

import numpy as np
import pytest
import torch

from accel.profile import probe
from accel.spectra import measure_spectra
from meanfield.params import RankParams
from meanfield.predict import predict_rank, predict_spectrum
from tests.accel.test_profile import tiny

ABOUT_PARAMETERS = {"params"}
"""Attributes that only a prediction has."""


@pytest.fixture(scope="module")
def both():
    model = tiny()
    scenes = [torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    probes = [
        probe(model, images, queries=8, generator=torch.Generator().manual_seed(0), progress=False) for images in scenes
    ]
    params = RankParams.from_probes([found.rank_arrays() for found in probes])
    measured = measure_spectra(model, scenes[0], k=6, generator=torch.Generator().manual_seed(0), progress=False)
    return measured, params


def test_the_schemas_are_the_same(both):
    measured, params = both
    predicted = predict_spectrum(params, measured.attrs["tokens"], k=6)
    assert set(predicted.variables) == set(measured.variables)
    assert dict(predicted.sizes) == dict(measured.sizes)
    for name, variable in measured.variables.items():
        assert predicted[name].dims == variable.dims and predicted[name].dtype == variable.dtype, name
        assert set(predicted[name].attrs) == set(variable.attrs), name
        assert predicted[name].attrs["units"] == variable.attrs["units"], name
    assert set(predicted.attrs) - ABOUT_PARAMETERS == set(measured.attrs)
    for key in set(measured.attrs) - {"seed"}:
        assert type(predicted.attrs[key]) is type(measured.attrs[key]), key
    assert predicted.attrs["device"] == "cpu" and predicted.attrs["frames"] == measured.attrs["frames"]


def test_standard_errors_of_replicates_are_numbers(both, tmp_path):
    measured, params = both
    predicted = predict_spectrum(params, 2 * measured.attrs["tokens"], k=6)
    for name in predicted.data_vars:
        if name.endswith("_se"):
            assert np.isfinite(predicted[name]).all(), name
    predicted.to_netcdf(tmp_path / "spectrum.nc", engine="h5netcdf")
    predict_rank(4, [100.0, 200.0], params=params).to_netcdf(tmp_path / "ranks.nc", engine="h5netcdf")


def test_every_variable_of_a_prediction_says_what_it_is(both):
    for dataset in (predict_rank(4, [100.0, 200.0], params=both[1]), predict_spectrum(both[1], 160)):
        for name, variable in dataset.variables.items():
            assert variable.attrs["long_name"] and variable.attrs["units"], name
