"""Where a run starts: from the weights of another model instead of random ones."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.backbone.card import CARD, Card, inherit, read_card
from foveal.backbone.formats import read_checkpoint
from foveal.backbone.infer import build
from foveal.backbone.refit import check_refit, refit
from foveal.backbone.source import open_backbone
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import HEADS, load_tensors
from foveal.engine.identity import identity_of
from foveal.errors import RecipeError, WeightsError
from foveal.pretrain.network import Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartWeights:
    """The weights that a run starts from.

    Attributes:
        source: what the recipe calls them.
        backbone: in float32, on the CPU.
        card: theirs.
        heads: of pretraining, by name; empty where the source has none.
    """

    source: str
    backbone: VisionTransformer
    card: Card
    heads: Mapping[str, Tensor]

    @property
    def identity(self) -> str:
        """What tells these weights from others: see `identity_of`; the heads do not count."""
        return identity_of(self.backbone, self.backbone.config)


def open_start(source: str, *, num_heads: int | None = None) -> StartWeights:
    """Read the weights that a run starts from.

    Args:
        source: a run folder (its model is taken), or what `open_backbone` opens.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        WeightsError, DownloadError: as `open_backbone`; also for a run that has not saved a model yet.
    """
    path = model_path(source)
    if not path.exists():
        backbone, card = open_backbone(source, num_heads=num_heads)
        return StartWeights(source, backbone, card, {})
    found = read_checkpoint(path, num_heads=num_heads)
    backbone = build(found.tensors, found.card.backbone, dtype=torch.float32)
    return StartWeights(source, backbone, found.card, {k: v.float() for k, v in found.ssl_heads.items()})


def fill_from_start(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe with what it leaves open taken from its start.

    backbone: keeps what is given (channels, num_registers, image_size, drop_path_rate) and takes the rest, unless it
    names a width or variant itself, in which case nothing at all is filled in. normalise: the card's, unless the number
    of channels is another. views.global_size, views.local_size and features: the card's crop, and 98/224 of it. heads:
    in the sizes of those that the start has; where it has none, one of 4,096 prototypes for both terms.
    """
    start = values.get("start")
    source = start.get("model") if isinstance(start, dict) else start
    given, views = values.get("backbone") or {}, values.get("views") or {}
    if not isinstance(source, str) or not (isinstance(given, dict) and isinstance(views, dict)):
        return values
    if {"width", "variant"} & given.keys():
        return values
    path = model_path(source)
    card, heads = (read_card(path), _heads_of(path)) if (path / CARD).is_file() else _opened(source)
    # A network keeps the way in which its positions are resized, also when registers come to it.
    inherited = card.backbone.model_dump() | {"pos_embed_resize": card.backbone.resize_mode}
    filled = {"heads": _head_sizes(heads), **values, "backbone": {**inherited, **given}}
    if filled["backbone"]["channels"] == card.backbone.channels:
        filled.setdefault("normalise", {"mean": card.mean, "std": card.std})
    if "global_size" not in views:
        patch = card.backbone.patch_size
        local = max(1, round(card.crop_size * 98 / 224 / patch)) * patch
        filled["views"] = {"global_size": card.crop_size, "local_size": local, **views}
        filled.setdefault("features", {"crop_size": card.crop_size, "resize_size": card.resize_size})
    return filled


def _opened(source: str) -> tuple[Card, Mapping[str, Tensor]]:
    start = open_start(source)
    return start.card, start.heads


def _heads_of(folder: Path) -> Mapping[str, Tensor]:
    path = folder / HEADS
    return load_tensors(path) if path.is_file() else {}


def _head_sizes(heads: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the section `heads` of a recipe for heads of these tensors."""
    sizes: dict[str, Any] = {"dino": {"num_prototypes": 4096, "bottleneck": 256, "hidden": 2048}, "ibot": None}
    for name in sizes:
        if (prototypes := heads.get(f"{name}_head.last_layer.weight_v")) is not None:
            hidden = len(heads[f"{name}_head.mlp.0.weight"])
            sizes[name] = dict(zip(("num_prototypes", "bottleneck"), prototypes.shape, strict=True), hidden=hidden)
    return sizes


def check_start(start: StartWeights, config: BackboneConfig) -> None:
    """Raise RecipeError where the weights of a start do not fit the backbone of a recipe."""
    try:
        check_refit(start.backbone.config, config)
    except WeightsError as error:
        raise RecipeError(
            f"start={start.source} does not fit the recipe's backbone: {error}; leave the others out of the recipe, to "
            "take those of the start"
        ) from error


@torch.no_grad()
def load_start(network: Network, start: StartWeights, *, seed: int) -> list[str]:
    """Put the weights of a start into a network with random ones; return in words what stays new.

    A head is taken where the start has it in the same sizes.

    Raises:
        WeightsError: the start does not fit the network; see `check_start`.
    """
    generator = torch.Generator().manual_seed(seed)
    state, new = refit(start.backbone, network.backbone.config, generator=generator)
    network.backbone.load_state_dict(state)
    for name, head in network.named_children():
        if name == "backbone":
            continue
        prefix = f"{name}."
        found = {k.removeprefix(prefix): v for k, v in start.heads.items() if k.startswith(prefix)}
        wanted = head.state_dict()
        if not found:
            new.append(f"{name}: random, the start has none")
        elif {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
            new.append(f"{name}: random, that of the start has other sizes")
        else:
            head.load_state_dict(found)
    logger.info("starting from %s; new: %s", start.source, "; ".join(new) or "nothing")
    return new


def inherited_card(card: Card, start: StartWeights, *, new: list[str]) -> Card:
    """Return the card of a model made from a start: its licence holds on, and the lineage names it."""
    lineage = {**card.lineage, "start": {"name": start.card.name, "lineage": start.card.lineage, "new": new}}
    return inherit(card.model_copy(update={"lineage": lineage}), [start.card])


def model_path(source: str) -> Path:
    """Return the model folder of a run, or the path itself."""
    path = Path(source)
    inside = path / "model"
    return inside if not (path / CARD).exists() and (inside / CARD).is_file() else path
