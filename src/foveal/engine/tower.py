"""What the backbones of other libraries share: a tower, and how one is made, filled with weights and described."""

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.backbone.containers import read_container
from foveal.backbone.licence import Licence
from foveal.backbone.variants import BackboneConfig
from foveal.errors import FovealError

RANDOM = "random"

# (images, numbers of blocks in ascending order, apply the final norm) -> (prefix tokens or None, patches) of each.
Run = Callable[[Tensor, list[int], bool], list[tuple[Tensor | None, Tensor]]]


@dataclass(frozen=True)
class Tower:
    """An image tower of another library.

    Attributes:
        name: as asked for.
        library: its name, for the version.
        module: the network.
        run: gives the tokens of chosen blocks.
        config: sizes, of a custom variant.
        mean: of each channel, in 0..1.
        std: of each channel, in 0..1.
        crop_size: pixels of a side that the network is given.
        resize_size: pixels of the shorter side before that crop.
        is_fixed: takes images of config.image_size only.
        licence: of the library's pretrained weights.
    """

    name: str
    library: str
    module: nn.Module
    run: Run
    config: BackboneConfig
    mean: list[float]
    std: list[float]
    crop_size: int
    resize_size: int
    is_fixed: bool
    licence: Licence


def made(source: str, make: Callable[[], Any], seed: int = 0) -> Any:
    """Call a library that may look for files, under the seed of random weights; its errors become ours."""
    if os.environ.get("FOVEAL_OFFLINE", "0") not in ("", "0") and not imported("huggingface_hub").is_offline_mode():
        raise FovealError(
            f"{source}: FOVEAL_OFFLINE forbids the network; set HF_HUB_OFFLINE=1 too, which the library heeds"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise FovealError(
                f"{source} brings code of its own, which is not run; give a model whose architecture the library has"
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FovealError(
            f"{source} cannot be loaded: {first}; give its weights as {source.partition('#')[0]}#FILE, or #random to "
            "try the architecture"
        ) from error


def imported(name: str) -> Any:
    """Return another library's module; FovealError says what to install, or which versions do not fit each other."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FovealError(f"{error.name} is not installed; pip install 'foveal[foreign]'") from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise FovealError(f"{name} cannot be imported: {_misfit(error)}") from error


def _misfit(error: Exception) -> str:
    """Say which torch and torchvision do not fit, and which do: torch 2.N goes with torchvision 0.(N + 15)."""
    try:
        torchvision = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return str(error)
    version, _, build = torch.__version__.partition("+")
    fitting = f"0.{int(version.split('.')[1]) + 15}"
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return (
        f"torch {torch.__version__} and torchvision {torchvision} do not fit each other ({error}); torch {version} "
        f"goes with torchvision {fitting} of the same build: pip install torch=={version} "
        f"'torchvision=={fitting}.*'{index}"
    )


def fill(source: str, module: nn.Module, weights: str) -> None:
    """Fill a network with the weights in a file: all of them, under their own names or with one prefix before them."""
    path = Path(weights)
    if not path.is_file():
        raise FovealError(f"{source}: {path} does not exist; give a file of weights, or #random")
    tensors, wanted = read_container(path).tensors, module.state_dict()
    first = next(iter(wanted))
    prefixes = [n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in tensors for name in wanted)]
    if len(whole) > 1:
        raise FovealError(f"{source}: {path} holds several such networks ({', '.join(whole)}); save the one you mean")
    prefix = (whole or prefixes or [""])[0]
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    shape = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    wrong = [f"missing {name}" for name in shape if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in shape]
    wrong += [
        f"{name} is {tuple(tensor.shape)}, expected {shape[name]}"
        for name, tensor in found.items()
        if name in shape and tuple(tensor.shape) != shape[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FovealError(f"{source}: {path} does not fit this network: {', '.join(wrong[:3])}{more}")
    module.load_state_dict(found)


def tower_config(
    source: str, width: int, depth: int, num_heads: int, patch_size: int, image_size: int, num_prefix: int
) -> BackboneConfig:
    """Return the sizes of a tower; FovealError says which of them no network of ours could have."""
    try:
        return BackboneConfig(
            width=width,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            image_size=image_size,
            num_registers=max(0, num_prefix - 1),
        )
    except ValueError as error:
        raise FovealError(f"{source}: {error}") from error


def num_heads_of(module: Any, blocks: Any = None) -> int:
    """Return the number of attention heads of a transformer, or of its blocks where they have another name."""
    attention = (blocks if blocks is not None else module.blocks)[0].attn
    return int(attention.num_heads)


def no_patches(source: str) -> FovealError:
    """Return the error for an architecture without patch tokens on a grid."""
    return FovealError(
        f"{source} has no patch tokens on a grid; choose a vision transformer or, of timm, a network with a last map"
    )


def tried(run: Run, image_size: int) -> tuple[int, int]:
    """Return the number of prefix tokens and the width that a tower gives, seen on one black image."""
    with torch.inference_mode():
        prefix, patches = run(torch.zeros(1, 3, image_size, image_size), [0], False)[0]
    return 0 if prefix is None else prefix.shape[1], patches.shape[-1]
