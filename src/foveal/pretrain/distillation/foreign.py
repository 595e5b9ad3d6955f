"""Networks of other libraries as students, behind the interface of our own backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from foveal.backbone.card import Card
from foveal.backbone.layers import Group
from foveal.backbone.licence import Licence
from foveal.backbone.variants import BackboneConfig, multiple_of_patch
from foveal.backbone.vit import Tokens, VisionTransformer, layer_numbers
from foveal.engine.foreign import architecture_of, is_foreign, open_tower
from foveal.engine.tower import RANDOM
from foveal.errors import FovealError, RecipeError


def fill_from_library(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe with the sizes of students of other libraries, which only those libraries know.

    A backbone of variant "timm:NAME#random" (or "hf:", "open_clip:"; without "#random" the library's pretrained
    weights) gets the width, patch size and depth that the network has; only `image_size` may be given.
    """
    distill = values.get("distill")
    filled = {**values, "backbone": _filled(values.get("backbone"), "backbone")}
    if isinstance(distill, dict) and isinstance(distill.get("students"), dict):
        students = {k: _filled(v, f"distill.students.{k}") for k, v in distill["students"].items()}
        filled["distill"] = {**distill, "students": students}
    return filled


def _filled(given: Any, key: str) -> Any:
    if not isinstance(given, dict) or not is_foreign(given.get("variant")) or given.keys() >= {"width", "depth"}:
        return given  # ours, or written out in full, as in the recipe of a run
    if odd := given.keys() - {"variant", "image_size"}:
        raise RecipeError(f"{key}.{sorted(odd)[0]} is for {given['variant']} to say; leave it out")
    sizes = open_tower(f"{architecture_of(given['variant'])}#{RANDOM}").config.model_dump()
    return {**sizes, **given}


class ForeignStudent(nn.Module):
    """An image tower of another library behind the interface of `VisionTransformer` that training and kNN use.

    Its packed tokens are the class token (the pooled feature of a network without one) and the patches of each crop.
    It has no mask token. What it draws at random, such as stochastic depth, is drawn from the step's generator. Names
    in its state are the library's.

    Args:
        config: of a variant such as "timm:convnext_atto#random".
        seed: of random weights.

    Raises:
        FovealError: the library or the network is not there; see `load_foreign`.
        RecipeError: the network has other sizes than `config` says.
    """

    num_prefix_tokens = 1

    def __init__(self, config: BackboneConfig, *, seed: int) -> None:
        super().__init__()
        tower = open_tower(config.variant, seed=seed)
        wanted, seen = config.model_dump(), tower.config.model_dump()
        for name in ("width", "depth", "patch_size", "channels"):
            if wanted[name] != seen[name]:
                raise RecipeError(f"{config.variant} has {name}={seen[name]}, the recipe says {wanted[name]}")
        self.config, self.is_fixed = config, tower.is_fixed
        self.licence: Licence | None = None if config.variant.endswith(f"#{RANDOM}") else tower.licence
        self.module, self._run = tower.module.train(), tower.run

    def init_weights(self, generator: torch.Generator) -> "ForeignStudent":
        """Return self: the library has drawn or read the weights."""
        return self

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return (grid_h, grid_w) of a batch (B, C, H, W); FovealError where the network cannot take its size."""
        height, width = images.shape[-2:]
        patch = self.config.patch_size
        for name, size in (("image height", height), ("image width", width)):
            if size % patch or size == 0:
                raise FovealError(multiple_of_patch(name, size, patch) + " (resize or pad first)")
            if self.is_fixed and size != self.config.image_size:
                raise FovealError(f"{self.config.variant} takes {self.config.image_size} pixels alone, not {size}")
        return height // patch, width // patch

    def forward(self, images: Tensor) -> Tokens:
        """Return the tokens after the network's final norm: cls (B, D), no registers, patches (B, P, D)."""
        prefix, patches = self._run(images, [self.config.depth - 1], True)[0]
        cls = patches.mean(dim=1) if prefix is None else prefix[:, 0]
        return Tokens(cls, patches[:, :0], patches)

    def intermediate(self, images: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens of the last block, which is the only one that an engine is asked for here."""
        if layer_numbers(layers, depth=self.config.depth) != (self.config.depth - 1,) or not norm:
            raise FovealError(f"{self.config.variant} gives its last block after the norm while it is trained")
        return [self(images)]

    def forward_rows(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        rows: Tensor,
        *,
        generator: torch.Generator | None = None,
        absent: Sequence[Group] = (),
    ) -> Tensor:
        """Return chosen packed tokens (R, D) of several batches; see `VisionTransformer.forward_rows`.

        Batches draw one after the other, so that `absent` ones, which come last, change nothing.
        """
        if any(mask is not None for mask in masks):
            raise FovealError(f"{self.config.variant} has no mask token; it learns by distillation alone")
        packed = []
        with _drawing_from(generator, images[0].device):
            for batch in images:
                cls, _, patches = self(batch)
                packed.append(torch.cat([cls[:, None], patches], dim=1).flatten(0, 1))
        return torch.cat(packed).index_select(0, rows)


@contextmanager
def _drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let the global generators, which libraries draw from, begin at the state of the step's, and put them back."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())
        yield


def build_backbone(config: BackboneConfig, *, seed: int) -> VisionTransformer:
    """Return a student's backbone, ours or one of another library behind the same interface."""
    if is_foreign(config.variant):
        return cast(VisionTransformer, ForeignStudent(config, seed=seed))
    return VisionTransformer(config)


def begun_from(network: nn.Module) -> list[Card]:
    """Return the card of the pretrained weights that a library gave to a student; nothing where they were random."""
    backbone = network.get_submodule("backbone")
    if not isinstance(backbone, ForeignStudent) or backbone.licence is None:
        return []
    config = backbone.config
    return [Card(name=config.variant, backbone=config, licence=backbone.licence)]
