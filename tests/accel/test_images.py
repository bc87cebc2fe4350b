"""Photographs in, tensor out: VGGT's preprocessing, and every kind of bad input by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from accel.errors import AccelError
from accel.images import load_images, load_truth
from accel.models.config import TESTBED

WIDE = (96, 72)


def write(path, size=WIDE, color=(200, 30, 90), mode="RGB", **options):
    Image.new(mode, size, color).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("img10.png", "img2.JPG", "img1.webp"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a photograph")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_a_folder_is_its_image_files_in_numeric_order(folder):
    images = load_images([folder], TESTBED)
    assert images.names == ("img1.webp", "img2.JPG", "img10.png")
    assert images.tensor.shape == (1, 3, 3, 48, 64) and images.tensor.dtype == torch.float32
    assert images.original_size == WIDE and len(images) == 3
    assert images.thumbnails[0].shape == (72, 96, 3) and images.thumbnails[0].dtype == np.uint8


def test_frames_keeps_evenly_spread_ones(folder):
    assert load_images([folder], TESTBED, frames=2).names == ("img1.webp", "img10.png")
    assert len(load_images([folder], TESTBED, frames=50)) == 3


def test_names_carry_the_folder_where_they_would_be_alike(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "0.png"))
    assert load_images(paths, TESTBED).names == tuple(map(str, paths))


def test_tall_pictures_are_cropped_at_the_centre(tmp_path):
    picture = Image.new("RGB", (64, 192), "black")
    picture.paste((255, 255, 255), (0, 64, 64, 128))
    for name in "ab":
        picture.save(tmp_path / f"{name}.png")
    images = load_images([tmp_path], TESTBED)
    assert images.tensor.shape[-2:] == (64, 64) and images.tensor.min() == 1


def test_height_is_the_nearest_multiple_of_the_patch(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png", size=(640, 273))  # 27.3 rows at width 64: 24 is nearest
    assert load_images([tmp_path], TESTBED).tensor.shape[-2:] == (24, 64)


def test_bicubic_as_pillow_does_it(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)) / 255
    found = load_images([tmp_path], TESTBED).tensor[0, 0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: stored 96x72, to be seen 72x96
    for name in "ab":
        write(tmp_path / f"{name}.jpg", exif=exif)
    images = load_images([tmp_path], TESTBED)
    assert images.original_size == (72, 96) and images.tensor.shape[-2:] == (64, 64)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparency_is_put_on_white(tmp_path, mode, color):
    for name in "ab":
        write(tmp_path / f"{name}.png", mode=mode, color=color)
    assert load_images([tmp_path], TESTBED).tensor.min() == 1


def test_sixteen_bits_are_scaled(tmp_path):
    for name in "ab":
        Image.fromarray(np.full((72, 96), 32896, np.uint16)).save(tmp_path / f"{name}.png")
    assert load_images([tmp_path], TESTBED).tensor.unique().tolist() == [pytest.approx(128 / 255)]


@pytest.mark.parametrize(("suffix", "mode"), [("bmp", "RGB"), ("tif", "RGB"), ("png", "L"), ("png", "P")])
def test_other_formats_and_modes(tmp_path, suffix, mode):
    for name in "ab":
        Image.new("RGB", WIDE, "white").convert(mode).save(tmp_path / f"{name}.{suffix}")
    assert load_images([tmp_path], TESTBED).tensor.min() == 1


def refused(paths, *words, **options):
    with pytest.raises(AccelError) as caught:
        load_images(paths, TESTBED, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_bad_inputs_are_named_with_the_remedy(folder):
    empty = folder / "empty"
    empty.mkdir()
    refused([], "no images", "at least 2")
    refused([empty], "no images", empty, "at least 2")
    refused([folder / "img10.png"], "only one image", "img10.png", "at least 2")
    refused([folder / "gone.png"], "gone.png", "does not exist")
    refused([folder, folder / "notes.txt"], "notes.txt", "not an image")
    refused([folder], "frames=1", frames=1)


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_an_unreadable_file_is_named(folder, content):
    data = (folder / "img10.png").read_bytes()[:60] if content == "truncated" else content
    (folder / "img3.png").write_bytes(data)
    refused([folder], "img3.png", "cannot be read", "replace")


def test_mixed_sizes_name_two_files(folder):
    write(folder / "img4.png", size=(96, 80))
    refused([folder], "img1.webp is 96x72", "img4.png is 96x80", "one size")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"extrinsics": np.zeros((3, 2))}, "extrinsics have shape"),
        ({"extrinsics": np.float64(3)}, "extrinsics have shape"),
        ({"extrinsics": np.tile(np.eye(3, 4), (4, 1, 1))}, "extrinsics have shape"),
        ({"extrinsics": np.zeros((3, 3, 4))}, "not rotations"),
        ({"depth": np.float64(1)}, "depth has shape"),
        ({"depth": np.zeros((3, 4, 4))}, "not above 0"),
        ({"depth": np.full((3, 4, 4), np.nan)}, "not finite"),
        ({"intrinsics": np.float64(3)}, "intrinsics have shape"),
        ({"names": np.array(["a", "b", "c"])}, "names are not"),
    ],
)
def test_a_wrong_truth_is_named_with_the_remedy(folder, wrong, word):
    right = {"extrinsics": np.tile(np.eye(3, 4), (3, 1, 1)), "depth": np.ones((3, 4, 4)), "intrinsics": np.eye(3)}
    np.savez(folder / "truth.npz", **right)
    images = load_images([folder], TESTBED)
    assert load_truth(images)["intrinsics"].shape == (3, 3, 3)
    np.savez(folder / "truth.npz", **right | wrong)
    with pytest.raises(AccelError, match=f"truth.npz: .*{word}.*move truth.npz away or repair it"):
        load_truth(images)


def test_a_hidden_photograph_has_no_truth(folder):
    write(folder / ".hidden.png")
    (folder / "truth.npz").write_bytes(b"")
    with pytest.raises(AccelError, match=r"hidden.png.*move truth.npz away"):
        load_truth(load_images([folder / ".hidden.png", folder / "img2.JPG"], TESTBED))
