"""Backbones of others behind the same call: "timm:NAME", "hf:NAME_OR_FOLDER", "open_clip:NAME/PRETRAINED", "sscd:FILE".

The libraries (extra `foreign`) are imported only when such a name is asked for: timm_tower.py, transformers_tower.py
and open_clip_tower.py each know one. Weights are the library's own pretrained ones, found by it in its cache or fetched
by it. "#FILE" after the name takes them from a file, which is opened here and not by the library, and "#random" draws
them from a fixed seed, to try an architecture without weights. Code that comes with a model is never run. SSCD, which
describes pictures so that copies are found, is no library: its network is in sscd_tower.py, its weights are a file.

What `encode` gives are patch tokens on a grid: of a vision transformer, or the last feature map of another network of
timm. A tower without a class token (SigLIP) gives the mean of its patches in its place. Every token is after the
tower's final norm and before any projection; those of SSCD are after its head and of length 1.
"""

import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foveal.backbone.card import CARD, Card, read_card
from foveal.backbone.licence import OWN, UNKNOWN
from foveal.backbone.vit import Tokens, layer_numbers
from foveal.backbone.weights import weights_file
from foveal.engine.base import Precision
from foveal.engine.identity import identity_of
from foveal.engine.open_clip_tower import OpenClip, open_clip_pair, open_clip_tower
from foveal.engine.sscd_tower import sscd_tower
from foveal.engine.timm_tower import timm_tower
from foveal.engine.tower import RANDOM, Tower
from foveal.engine.transformers_tower import transformers_tower
from foveal.errors import FovealError, nearest

PREFIXES = ("timm:", "hf:", "open_clip:", "sscd:")


class ForeignEngine:
    """Runs an image tower of another library without gradients: normalised images in, float32 tokens out."""

    def __init__(self, tower: Tower, *, precision: Precision = "fp32", device: str | torch.device = "cpu") -> None:
        if precision not in ("fp32", "bf16"):
            raise FovealError(f"precision='{precision}' of {tower.name}; choose fp32 or bf16")
        self.tower, self.precision, self.device = tower, precision, torch.device(device)
        tower.module.to(self.device).eval().requires_grad_(False)

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of the engine."""
        version = importlib.metadata.version(self.tower.library)
        return {
            "name": self.tower.library,
            "precision": self.precision,
            "device": self.device.type,
            "version": f"{version}, torch {torch.__version__}",
        }

    @property
    def identity(self) -> str:
        """Return the hash that tells this network from others; see `identity_of`."""
        return identity_of(self.tower.module, self.tower.config, architecture=architecture_of(self.tower.name))

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "ForeignEngine":
        """Return this engine: it has nothing to decide."""
        return self

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, 3, H, W) float32, normalised."""
        return self.intermediate(batch, 1)[0]

    @torch.inference_mode()
    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order.

        Raises:
            FovealError: blocks that do not exist, or a size that the tower does not take.
        """
        config = self.tower.config
        wanted = layer_numbers(layers, depth=config.depth, what=self.tower.name)
        height, width = batch.shape[-2:]
        if self.tower.is_fixed and (height, width) != (config.image_size, config.image_size):
            raise FovealError(
                f"{self.tower.name} takes {config.image_size} x {config.image_size} pixels, not {height} x {width}"
            )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.tower.run(batch.to(self.device), list(wanted), norm)
        return [_tokens(prefix, patches) for prefix, patches in found]


def is_foreign(source: object) -> bool:
    """Tell whether a model's name is one of another library.

    Example:
        >>> is_foreign("timm:vit_small_patch14_dinov2"), is_foreign("runs/model")
        (True, False)
    """
    return isinstance(source, str) and source.startswith(PREFIXES)


def check_prefix(source: object) -> None:
    """Refuse the prefix of a library that is not known here; FovealError names the nearest."""
    prefix, colon, rest = str(source).partition(":")
    if not colon or rest.startswith("//") or is_foreign(source) or Path(str(source)).exists():
        return
    raise FovealError(
        f"{prefix}: is no library that is known here; choose {', '.join(PREFIXES)}{nearest(f'{prefix}:', PREFIXES)}"
    )


def check_foreign_options(source: object, *, engine: str, fast: bool, num_heads: int | None) -> None:
    """Refuse what a model of another library has no choice of."""
    if engine == "openvino" or fast or num_heads is not None:
        raise FovealError(f"{source} runs as its own library runs it; leave engine, fast and num_heads out")


def load_foreign(
    source: str, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> tuple[ForeignEngine, Card]:
    """Return the engine of another library's backbone, and a card with its preprocessing.

    Args:
        source: "timm:NAME", "hf:NAME_OR_FOLDER" or "open_clip:NAME/PRETRAINED", with "#FILE" or "#random" behind;
            "sscd:FILE" or "sscd:#random".
        precision: "fp32" or "bf16".
        device: a torch device.

    Raises:
        FovealError: the library is missing or does not fit torch, the name is unknown to it, its weights are not to be
            had, or the architecture has no patch tokens; the message says which and what to do.
    """
    return _engine_and_card(open_tower(source), source, precision, device)


def load_open_clip(
    source: str, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> tuple[ForeignEngine, Card, OpenClip]:
    """Return what `load_foreign` does for "open_clip:NAME/PRETRAINED", and both towers, which share the image tower."""
    _, name, weights = _parts(source)
    pair = open_clip_pair(source, name, weights, precision=precision, device=device)
    return *_engine_and_card(pair.tower, source, precision, device), pair


def open_tower(source: str, *, seed: int = 0) -> Tower:
    """Return an image tower of another library as it makes it; see `load_foreign`. `seed` is of "#random" weights."""
    library, name, weights = _parts(source)
    make = {"timm": timm_tower, "hf": transformers_tower, "open_clip": open_clip_tower, "sscd": sscd_tower}[library]
    return make(source, name, weights, seed)


def holds_foreign(model: str | Path) -> bool:
    """Tell whether a model folder holds a network of another library, as distillation writes them."""
    return (Path(model) / CARD).is_file() and is_foreign(read_card(Path(model)).backbone.variant)


def load_foreign_folder(
    folder: str | Path, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> tuple[ForeignEngine, Card]:
    """Return the engine and the card of a model folder that `holds_foreign`; errors as of `load_foreign`."""
    card = read_card(Path(folder))
    tower = open_tower(f"{architecture_of(card.backbone.variant)}#{weights_file(folder)}")
    return ForeignEngine(tower, precision=precision, device=device), card


def architecture_of(source: str) -> str:
    """Return the name of a network without that of its weights.

    Example:
        >>> architecture_of("timm:resnet18#random"), architecture_of("sscd:weights.pt")
        ('timm:resnet18', 'sscd:')
    """
    library, name, _ = _parts(source)
    return f"{library}:{name}"


def _parts(source: str) -> tuple[str, str, str]:
    """Return the library, the name and the weights of a source; SSCD is one network, named by its weights alone."""
    library, _, rest = source.partition(":")
    if library == "sscd":
        return library, "", rest.removeprefix("#")
    name, _, weights = rest.partition("#")
    if not name:
        raise FovealError(f"{source} names no model; give e.g. timm:vit_small_patch14_dinov2")
    return library, name, weights


def _engine_and_card(
    tower: Tower, source: str, precision: Precision, device: str | torch.device
) -> tuple[ForeignEngine, Card]:
    config, weights = tower.config, _parts(source)[2]
    engine = ForeignEngine(tower, precision=precision, device=device)
    card = Card(
        name=source,
        backbone=config,
        mean=tower.mean,
        std=tower.std,
        crop_size=tower.crop_size,
        resize_size=max(tower.resize_size, tower.crop_size),
        licence={"": tower.licence, RANDOM: OWN}.get(weights, UNKNOWN),
        lineage={"library": tower.library, "weights": weights or "pretrained"},
        sha256={"state_dict": engine.identity},
    )
    return engine, card


def _tokens(prefix: Tensor | None, patches: Tensor) -> Tokens:
    patches = patches.float()
    if prefix is None:
        return Tokens(patches.mean(dim=1), patches[:, :0], patches)
    prefix = prefix.float()
    return Tokens(prefix[:, 0], prefix[:, 1:], patches)
