"""Photographs to the tensor a VGGT reads, with errors that name the file and the remedy."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from accel.errors import AccelError
from accel.models.config import VGGTConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
THUMBNAIL_WIDTH = 240


@dataclass(frozen=True, eq=False)
class Images:
    """One scene: `tensor` (1, S, 3, H, W) in [0, 1], and of each frame its path and a thumbnail (h, w, 3) uint8.

    `original_size` is (width, height) of the photographs, in pixels, after their EXIF orientation.
    """

    tensor: Tensor
    paths: tuple[Path, ...]
    thumbnails: tuple[np.ndarray, ...]
    original_size: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """File names; with their folder where two would be alike."""
        return file_names(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def load_images(paths: Iterable[str | Path], config: VGGTConfig, *, frames: int | None = None) -> Images:
    """Photographs of one scene, prepared as VGGT's authors do; at least two, all of one size.

    `paths` are files and folders; a folder stands for the image files in it (not in folders below it), by name with
    numbers in numeric order, other files ignored. `frames` keeps so many, evenly spread, the first one included.

    The width becomes config.image_size W, the height the multiple of config.patch_size nearest to height * W / width;
    bicubic with antialiasing; what is taller than W is cropped to it at the centre. EXIF orientation is applied,
    transparency is put on white. AccelError: no image, one image, a missing path, a file that is not an image or
    cannot be decoded, mixed sizes.
    """
    return read_images(select_images(paths, frames), config)


def select_images(paths: Iterable[str | Path], frames: int | None = None) -> list[Path]:
    """The image files that `load_images` reads, in its order; nothing is decoded."""
    found = find_images(paths)
    if frames is None:
        return found
    if frames < 2:
        raise AccelError(f"frames={frames} is too few; a scene needs at least 2 photographs")
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(frames, len(found))).round().astype(int))]


def read_images(found: Sequence[Path], config: VGGTConfig) -> Images:
    """The photographs of these files as `load_images` prepares them, one or more; AccelError as there."""
    tensors, thumbnails = [], []
    size: tuple[int, int] | None = None
    for path in found:
        picture = read_image(path)
        size = size or picture.size
        if picture.size != size:
            raise AccelError(
                f"mixed sizes: {found[0]} is {size[0]}x{size[1]} and {path} is {picture.size[0]}x{picture.size[1]}; "
                "resize or crop all photographs to one size"
            )
        tensors.append(preprocess(picture, config.image_size, config.patch_size))
        small = picture.copy()
        small.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
        thumbnails.append(np.asarray(small))
    return Images(torch.stack(tensors)[None], tuple(found), tuple(thumbnails), size)


def file_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The names of files; with their folder where two would be alike."""
    names = tuple(path.name for path in paths)
    return names if len(set(names)) == len(names) else tuple(str(path) for path in paths)


def load_truth(images: Images) -> dict[str, np.ndarray] | None:
    """What truth.npz beside the photographs knows: extrinsics (S, 3, 4), depth (S, h, w), intrinsics; None without it.

    The file is about all image files of its folder, in the order of `load_images`.
    """
    folders = {path.parent for path in images.paths}
    path = folders.pop() / "truth.npz"
    if folders or not path.is_file():
        return None
    place = {other.name: i for i, other in enumerate(find_images([path.parent]))}
    remedy = "move truth.npz away or repair it"
    for chosen in images.paths:
        if chosen.name not in place:
            raise AccelError(f"{path} says nothing about {chosen}, which is hidden; leave that out, or {remedy}")
    try:
        with np.load(path) as file:
            truth = {name: file[name] for name in ("extrinsics", "depth", "intrinsics")}
            truth |= {name: file[name] for name in ("names",) if name in file}
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise AccelError(f"{path} is not the truth of a scene ({error}); {remedy}") from error
    wrong = _wrong_truth(truth, list(place))
    if wrong:
        raise AccelError(f"{path}: {wrong}; {remedy}")
    rows = [place[p.name] for p in images.paths]
    return {
        name: np.broadcast_to(truth[name], (len(place), *truth[name].shape[-2:]))[rows]
        for name in ("extrinsics", "depth", "intrinsics")
    }


def _wrong_truth(truth: dict[str, np.ndarray], names: list[str]) -> str | None:
    """What is wrong with the arrays of a truth.npz beside image files of these names, if anything."""
    count, (poses, depth, camera) = len(names), (truth[name] for name in ("extrinsics", "depth", "intrinsics"))
    if "names" in truth and truth["names"].tolist() != names:
        return f"names are not those of the {count} images in its folder"
    if poses.shape != (count, 3, 4):
        return f"extrinsics have shape {poses.shape}, not {(count, 3, 4)} for the {count} images of its folder"
    if depth.ndim != 3 or len(depth) != count or not depth.size:
        return f"depth has shape {depth.shape}, not ({count}, height, width) for the {count} images of its folder"
    if camera.shape not in ((3, 3), (count, 3, 3)):
        return f"intrinsics have shape {camera.shape}, neither (3, 3) nor {(count, 3, 3)}"
    for name in ("extrinsics", "depth", "intrinsics"):
        if truth[name].dtype.kind not in "fiu" or not np.isfinite(truth[name]).all():
            return f"{name} are not finite real numbers"
    turn = poses[..., :3].astype(float)
    if np.abs(turn @ turn.swapaxes(1, 2) - np.eye(3)).max() > 1e-3 or (np.linalg.det(turn) < 0).any():
        return "the left 3x3 of extrinsics are not rotations (orthonormal, to 1e-3)"
    return None if depth.min() > 0 else f"depth has the value {depth.min():g}, which is not above 0"


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files that `paths` stand for, at least two; AccelError as `load_images`, nothing is decoded."""
    given = [Path(path) for path in paths]
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += sorted(
                (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."),
                key=_natural,
            )
        elif not path.exists():
            raise AccelError(f"{path} does not exist; give image files, or a folder that holds them")
        elif path.suffix.lower() not in SUFFIXES:
            raise AccelError(f"{path} is not an image file; give {_listed(SUFFIXES)} files, or a folder of them")
        else:
            found.append(path)
    where = ", ".join(str(path) for path in given[:3]) or "the arguments"
    if not found:
        raise AccelError(
            f"no images in {where}; give at least 2 photographs ({_listed(SUFFIXES)}), or a folder of them"
        )
    if len(found) == 1:
        raise AccelError(f"only one image, {found[0]}; a scene needs at least 2 photographs of the same place")
    return found


def read_image(path: Path) -> Image.Image:
    """The picture as RGB, upright, transparency on white, 16 bits reduced to 8; AccelError if it cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large photographs and odd metadata are no concern here
            with Image.open(path) as file:
                file.load()
                picture = ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AccelError(f"{path} cannot be read as an image ({reason}); replace the file or leave it out") from error
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.getextrema()[1] > 255):
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def preprocess(picture: Image.Image, image_size: int, patch_size: int) -> Tensor:
    """(3, H, W) in [0, 1]: width `image_size`, height a multiple of `patch_size`, at most `image_size`."""
    width, height = picture.size
    tall = max(1, round(height * image_size / width / patch_size)) * patch_size
    array = np.asarray(picture.resize((image_size, tall), Image.Resampling.BICUBIC))
    top = max(0, (tall - image_size) // 2)
    return torch.from_numpy(array[top : top + image_size].copy()).permute(2, 0, 1).float() / 255


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which img2 comes before img10."""
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in re.split(r"(\d+)", path.name) if part]


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
