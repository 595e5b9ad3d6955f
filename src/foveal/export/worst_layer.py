"""Where the error of an export begins: the tokens after every block, beside the original's."""

import logging

import torch
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.engine.base import Engine
from foveal.engine.gate import agreement
from foveal.errors import FovealError
from foveal.export.verdict_card import WorstLayer

logger = logging.getLogger(__name__)


def worst_layer(candidate: Engine, reference: Engine, batch: Tensor, *, depth: int) -> WorstLayer | None:
    """Return the layer that adds most to the error of an export's tokens; None where the export gives only the last.

    The embedding counts with the first block. A layer that gives numbers that are not finite adds more than any other.

    Args:
        candidate: runs the export.
        reference: runs the original in fp32.
        batch: (B, C, H, W) float32, normalised real images.
        depth: number of blocks.
    """
    names = [*(f"blocks.{number}" for number in range(depth)), "norm"]
    try:
        found = [*candidate.intermediate(batch, range(depth), norm=False), candidate.encode(batch)]
    except FovealError as error:
        logger.warning("which layer the error begins in cannot be told: %s", error)
        return None
    exact = [*reference.intermediate(batch, range(depth), norm=False), reference.encode(batch)]
    errors = [_error(ours, theirs) for ours, theirs in zip(found, exact, strict=True)]
    added = {name: after - before for name, before, after in zip(names, [0.0, *errors[:-1]], errors, strict=True)}
    worst = max(added, key=added.__getitem__)
    cosines = [agreement([ours], [theirs]).cls_mean for ours, theirs in zip(found, exact, strict=True)]
    return WorstLayer(name=worst, added=added[worst], cosine=dict(zip(names, cosines, strict=True)))


def _error(found: Tokens, exact: Tokens) -> float:
    """Return ||found - exact|| / ||exact||: the mean over class tokens and that over all others, half each."""
    parts = [(found.cls, exact.cls)]
    parts.append((torch.cat([found.registers, found.patches], 1), torch.cat([exact.registers, exact.patches], 1)))
    means = []
    for ours, theirs in parts:
        ours, theirs = ours.double().cpu(), theirs.double().cpu()
        errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)
        means.append(float(errors.nan_to_num(1e30, 1e30).mean()))
    return sum(means) / len(means)
