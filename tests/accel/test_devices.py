"""The table of GPUs: what it says, and that names are found."""

import json

import pytest

from accel.backbones import backbone
from accel.cost import Device, predict_seconds
from accel.devices import device_named, gpu_named, load_device, load_table, table_entry
from accel.errors import AccelError


def test_every_entry_is_a_device_below_its_peaks_and_says_where_it_comes_from():
    shared, gpus = load_table()
    assert {"H100", "H100 FA3", "H200", "H800", "H20", "A100", "A800", "RTX 4090", "V100"} == set(gpus)
    for gpu in gpus.values():
        device = gpu.device(shared)
        assert device.queued and device.itemsize == 2 and device.launch == device.overhead == shared.launch
        assert 0.02 * gpu.peak < device.linear < gpu.peak and 0.2 * gpu.peak < device.attention < gpu.peak
        assert device.bandwidth == pytest.approx(0.8 * gpu.bandwidth) and 16e9 <= gpu.memory <= 144e9
        assert "fitted to" in gpu.source or "not measured" in gpu.source


def test_the_linear_rate_is_products_and_passes_one_after_the_other():
    shared, gpus = load_table()
    device = gpus["A100"].device(shared)
    seconds = 24 * 1024**2 / (shared.matmul * 312e12) + shared.block_bytes / (0.8 * 2.04e12)
    assert 24 * 1024**2 / device.linear == pytest.approx(seconds)
    assert gpus["A100"].device(shared, channels=512).linear < device.linear


def test_names():
    assert device_named("h100").name == gpu_named("H100").name == "H100"
    assert table_entry("NVIDIA H100 80GB HBM3").name == "H100"
    assert table_entry("NVIDIA A100-SXM4-80GB").name == "A100"
    assert table_entry("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert table_entry("Tesla V100-SXM2-32GB").name == "V100"
    assert table_entry("NVIDIA H200").name == "H200" and table_entry("NVIDIA A800-SXM4-80GB").name == "A800"
    with pytest.raises(AccelError, match="'B200' is no GPU of the table"):
        device_named("B200")


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1080",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla V100-SXM2-16GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_other_hardware_of_a_similar_name_has_no_entry(name):
    assert table_entry(name) is None


def test_a_thousand_frames_on_an_h100_take_minutes_and_one_frame_its_launches():
    net = backbone("vggt")
    many = predict_seconds(net, net.layout(1000, 392, 518), device_named("H100"))
    assert 300 < many["total"] < 480 and many["global_attention"] / many["total"] > 0.9
    one = predict_seconds(net, net.layout(1, 336, 518), device_named("H100 FA3"), heads=False)
    assert 0.035 < one["total"] < 0.045  # published: .04


def test_a_calibration_file_is_read(tmp_path):
    device = Device("mine", 1.0, 2.0, 3.0, 4.0)
    path = tmp_path / "mine.json"
    for data in (device.to_dict(), {"device": device.to_dict(), "notes": []}):
        path.write_text(json.dumps(data))
        assert load_device(path) == device
    damaged = [json.dumps({"device": device.to_dict() | {"linear": value}}) for value in ("abc", None)]
    for text in ("[1]", "{", '{"name": "x"}', '{"device": null}', '{"device": 3}', *damaged):
        path.write_text(text)
        with pytest.raises(AccelError, match=r"mine\.json"):
            load_device(path)
    with pytest.raises(AccelError, match="no file of a device"):
        load_device(tmp_path / "none.json")


def test_rates_of_other_sizes_are_refused_where_sizes_are_asked_for(tmp_path):
    device, path = Device("mine", 1.0, 2.0, 3.0, 4.0), tmp_path / "mine.json"
    for sizes, found in ((None, "does not name"), ("testbed", "layers of 'testbed', not of 'vggt-1b'")):
        path.write_text(json.dumps({"device": device.to_dict()} | ({"sizes": sizes} if sizes else {})))
        assert load_device(path) == load_device(path, sizes=sizes) == device
        with pytest.raises(AccelError, match=found):
            load_device(path, sizes="vggt-1b")


def test_a_gpu_without_tf32_has_its_own_rate_of_convolutions():
    shared, gpus = load_table()
    assert gpus["V100"].device(shared).convolution == gpus["V100"].convolution < 0.1 * gpus["V100"].peak
    assert gpus["A100"].device(shared).convolution == shared.heads * gpus["A100"].peak
