"""Checkpoints: the bundled testbed, official VGGT files and our own, loaded strictly and without executing pickles."""

import os
import pickle
import struct
import zipfile
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from accel.errors import AccelError
from accel.models.config import PARITY_SMALL, TESTBED, VGGT_1B, VGGTConfig
from accel.models.vggt import VGGT

DELIBERATELY_UNUSED = {
    "track_head.": "point tracking is not part of this package",
    "aggregator.patch_embed.mask_token": "used only while DINOv2 was pre-trained",
}
"""Prefixes of official entries that are not loaded, each with its reason."""

CONFIGS = {"testbed": TESTBED, "vggt-1b": VGGT_1B, "vggt-small": PARITY_SMALL}
HUB_FILES = ("model.safetensors", "model.pt")


def load_model(
    name_or_path: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> VGGT:
    """A VGGT in evaluation mode from a name or a file.

    `name_or_path` is "testbed" (bundled), "random:testbed" or "random:vggt-1b" (random weights, seed 0), a local
    .safetensors, .pt or .pth file or a folder that holds one, or a hub id such as "facebook/VGGT-1B". The sizes come
    from the file's metadata, else they are VGGT-1B's. Every entry is loaded or listed in `DELIBERATELY_UNUSED`.
    dtype is that of the trunk, its tokens and what is kept of them; the heads stay in float32.
    Raises AccelError for a file that is missing, unreadable, of another model, or has non-finite weights.
    """
    name = os.fspath(name_or_path)
    if name.startswith("random:"):
        config = CONFIGS.get(name.removeprefix("random:"))
        if config is None:
            raise AccelError(f'no configuration "{name}"; choose random: and one of {", ".join(CONFIGS)}')
        return _placed(random_model(config, torch.Generator().manual_seed(0)), device, dtype)
    path = resources.files("accel") / "data" / "testbed.safetensors" if name == "testbed" else find_file(name)
    config, state = read_checkpoint(Path(str(path)))
    with torch.device("meta"):
        model = VGGT(config)
    tensors, _ = match_state(model, state, str(path))
    model.load_state_dict(tensors, assign=True)
    model.aggregator.set_normalisation()
    return _placed(model.eval().requires_grad_(False), device, dtype)


def _placed(model: VGGT, device: str | torch.device, dtype: torch.dtype) -> VGGT:
    if dtype != torch.float32:
        model.aggregator.to(dtype)
        model.aggregator.set_normalisation()  # of float32 images
    return model.to(device)


def find_file(name: str) -> Path:
    """The checkpoint file of a local path, a folder or a hub id."""
    path = Path(name)
    if path.is_dir():
        found = [path / file for file in HUB_FILES if (path / file).exists()]
        if not found:
            raise AccelError(f'folder "{name}" holds neither {" nor ".join(HUB_FILES)}; give the file itself')
        return found[0]
    if path.exists():
        return path
    if path.suffix in (".safetensors", ".pt", ".pth") or name.count("/") != 1:
        raise AccelError(f'no weights at "{name}"; give "testbed", an existing file, or a hub id like facebook/VGGT-1B')
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub client raises many unrelated types when offline or refused
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            message = f'cannot fetch "{name}" from the hub ({reason}); download the file and pass its path'
            raise AccelError(message) from error
    raise AccelError(f'hub repository "{name}" holds neither {" nor ".join(HUB_FILES)}')


def read_checkpoint(path: Path) -> tuple[VGGTConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a file, memory-mapped; only tensors are ever unpickled."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError, struct.error) as error:
            raise AccelError(f'"{path}" is not a readable safetensors file ({error}); download it again') from error
        try:
            return VGGTConfig.from_json(metadata["config"]) if "config" in metadata else VGGT_1B, state
        except AccelError as error:
            raise AccelError(f'"{path}" is of another model: {error}') from error
    if not zipfile.is_zipfile(path):
        reason = "not a file of torch.save in its present format" if path.stat().st_size else "the file is empty"
        raise AccelError(f'"{path}" is not a checkpoint of tensors only ({reason}); download it again, or convert it')
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AccelError(
            f'"{path}" is not a checkpoint of tensors only ({reason}); convert it to safetensors'
        ) from error
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise AccelError(f'"{path}" does not hold a state dict; save model.state_dict() instead')
    return VGGT_1B, state


def match_state(model: nn.Module, state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors for `model` in float32 and the names left out on purpose; raises AccelError for anything else."""
    expected = model.state_dict()
    unused = [k for k in state if k not in expected and k.startswith(tuple(DELIBERATELY_UNUSED))]
    unknown = sorted(set(state) - set(expected) - set(unused))
    missing = sorted(set(expected) - set(state))
    wrong = [k for k in expected if k in state and expected[k].shape != state[k].shape]
    if unknown or missing or wrong:
        parts = [
            f"{len(names)} {what} entries (first: {names[0]})"
            for what, names in (("unknown", unknown), ("missing", missing), ("differently shaped", wrong))
            if names
        ]
        raise AccelError(f'"{source}" is not a checkpoint of this VGGT: {", ".join(parts)}; give the weights of a VGGT')
    tensors = {k: state[k].float() for k in expected}
    for key, value in tensors.items():
        if value.device.type != "meta" and not torch.isfinite(value).all():
            raise AccelError(f'"{source}" has non-finite weights in {key}; the file is damaged, download it again')
    return tensors, unused


def random_model(config: VGGTConfig, generator: torch.Generator) -> VGGT:
    """A VGGT with random weights: N(0, 1/fan-in) matrices, N(0, .02^2) tokens, unit norms, configured LayerScale."""
    with torch.device("meta"):
        model = VGGT(config)
    model.to_empty(device="cpu")
    model.aggregator.set_normalisation()
    model.requires_grad_(False)
    for module in model.modules():
        if type(module).__name__ == "LayerScale":
            module.gamma.fill_(config.layer_scale)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            module.weight.fill_(1)
            module.bias.fill_(0)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, fan_in**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.fill_(0)
    tokens = (p for name, p in model.named_parameters() if "token" in name.rsplit(".", 1)[-1] or "pos_embed" in name)
    for token in tokens:
        token.normal_(0, 0.02, generator=generator)
    return model.eval()


def save_model(model: VGGT, path: str | os.PathLike, **metadata: str) -> None:
    """Write weights and configuration as safetensors, completely or not at all; `metadata` values are strings."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, temporary, metadata={"config": model.config.to_json(), **metadata})
    os.replace(temporary, path)
