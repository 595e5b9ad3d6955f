"""The verdict on an export: how well it agrees with the original on real images, what it costs, and whether it passes.

Shapes: B images, C channels, K maps, D width, H W pixels.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.engine.base import Engine
from foveal.engine.gate import FAST_LIMIT, Agreement, agreement
from foveal.errors import FovealError
from foveal.export.verdict_card import Cost, HeadVerdict, Spread, Task, Verdict
from foveal.export.worst_layer import worst_layer

# A neighbour counts as the same where the original finds it as near as its own, up to rounding: copies of an image.
_SAME_SIMILARITY = 1e-6
# Seconds for which a speed is measured, after one call to warm up.
_BUDGET_S = 1.0
# What stands for an error that is not finite: JSON knows no infinity.
_NOT_FINITE = 1e30


class HeadPair(NamedTuple):
    """A head in an export beside the original: functions of normalised images (B, C, H, W).

    They give logits (B, K), or logits or depth (B, K, H, W).
    """

    task: Task
    found: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]


def judge(
    candidate: Engine,
    reference: Engine,
    batches: Sequence[Tensor],
    *,
    limit: float = FAST_LIMIT,
    heads: Mapping[str, HeadPair] | None = None,
    depth: int | None = None,
    size_bytes: int | None = None,
    original_bytes: int | None = None,
) -> Verdict:
    """Compare an export with the original on real images.

    It passes when every class token and the mean patch have a cosine of at least `limit` (see `Agreement.passes`), the
    lengths of class tokens and the mean lengths of patches and registers are off by no more than sqrt(2 (1 - limit)),
    which is how far apart unit vectors of that cosine are, and the outputs of heads have a mean error of at most the
    same.

    Args:
        candidate: runs the export.
        reference: runs the original in fp32.
        batches: real images, normalised, (B, C, H, W) float32 each. Further ones of another size than the first show
            the same images again: they are compared, but not counted, and neighbours are not looked for among them.
        limit: least cosine, above 0 and below 1.
        heads: those of the export, by name.
        depth: number of blocks, to look for the worst layer of an export that does not pass; None does not look.
        size_bytes: of the export's files; see `bytes_of`.
        original_bytes: of the original's files.

    Raises:
        FovealError: a limit out of range, no images, or outputs of other shapes.

    Example:
        >>> verdict = judge(OnnxEngine(folder), model.engine, batches)  # doctest: +SKIP
        >>> verdict.passed  # doctest: +SKIP
        True
    """
    check_limit(limit)
    if not batches:
        raise FovealError("an export is judged on real images, and none were given; name some with --images")
    found, exact = ([_on_cpu(engine.encode(batch)) for batch in batches] for engine in (candidate, reference))
    for ours, theirs in zip(found, exact, strict=True):
        for name in Tokens._fields:
            check_shapes(name, getattr(ours, name), getattr(theirs, name))
    first = [number for number, batch in enumerate(batches) if batch.shape[2:] == batches[0].shape[2:]]
    tokens = agreement(found, exact)._replace(num_images=sum(len(batches[number]) for number in first))
    length = _worst_length(found, exact)
    outputs = {name: _judge_head(name, pair, batches) for name, pair in (heads or {}).items()}
    faults = [*_faults_of_tokens(tokens, length, limit), *_faults_of_heads(outputs, limit)]
    costs = _costs((candidate, reference), batches, (size_bytes, original_bytes))
    return Verdict(
        limit=limit,
        num_images=tokens.num_images,
        shapes=sorted({(batch.shape[2], batch.shape[3]) for batch in batches}),
        cls=Spread(min=tokens.cls_min, mean=tokens.cls_mean),
        patches=Spread(min=tokens.patch_min, mean=tokens.patch_mean),
        length=length,
        same_neighbour=same_neighbour(*(torch.cat([side[number].cls for number in first]) for side in (found, exact))),
        heads=outputs,
        export=costs[0],
        original=costs[1],
        faults=faults,
        worst_layer=worst_layer(candidate, reference, batches[0], depth=depth) if faults and depth else None,
    )


def same_neighbour(found: Tensor, exact: Tensor) -> float | None:
    """Return the share of rows whose nearest neighbour by cosine among the others is the same in both.

    Args:
        found: (N, D) features of the export.
        exact: (N, D) those of the original.

    Returns:
        0 to 1; None where no row has another.
    """
    if len(found) < 2:
        return None
    ours, theirs = _similarities(found), _similarities(exact)
    chosen = theirs.gather(1, ours.argmax(dim=1, keepdim=True))[:, 0]
    return float((chosen >= theirs.amax(dim=1) - _SAME_SIMILARITY).double().mean())


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def check_limit(limit: float) -> float:
    """Return a least cosine; FovealError unless it is above 0 and below 1."""
    if not 0 < limit < 1:
        raise FovealError(
            f"limit {limit} is no cosine to ask for; choose one above 0 and below 1, such as {FAST_LIMIT}"
        )
    return limit


def check_shapes(name: str, found: Tensor, exact: Tensor) -> None:
    """Raise FovealError unless an output of the export has the shape that the original's has."""
    if found.shape != exact.shape:
        raise FovealError(
            f"output {name} of the export is {tuple(found.shape)}, the original's {tuple(exact.shape)}; "
            "the files are not of this model: export it again"
        )


def _on_cpu(tokens: Tokens) -> Tokens:
    return Tokens(*(part.detach().float().cpu() for part in tokens))


def _similarities(rows: Tensor) -> Tensor:
    """Return the cosines (N, N) of rows to each other, -inf to themselves."""
    unit = F.normalize(rows.double().nan_to_num(0.0, 0.0, 0.0), dim=1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf)


def _worst_length(found: Sequence[Tokens], exact: Sequence[Tokens]) -> float:
    """Return the ratio of lengths furthest from 1: of a class token, or the mean of an image's patches or registers."""
    ratios = torch.cat(
        [
            mine / wanted.clamp(min=1e-12)
            for ours, theirs in zip(found, exact, strict=True)
            for mine, wanted in zip(_lengths(ours), _lengths(theirs), strict=True)
        ]
    ).nan_to_num(0.0, 0.0, 0.0)
    return float(ratios[(ratios - 1).abs().argmax()])


def _lengths(tokens: Tokens) -> list[Tensor]:
    """Return lengths (B,) of the class token, and mean ones of patches and, where there are some, of registers."""
    many = [tokens.patches, *([tokens.registers] if tokens.registers.shape[1] else [])]
    return [tokens.cls.double().norm(dim=1), *(one.double().norm(dim=2).mean(dim=1) for one in many)]


def _judge_head(name: str, pair: HeadPair, batches: Sequence[Tensor]) -> HeadVerdict:
    found, exact = ([run(batch).float().cpu() for batch in batches] for run in (pair.found, pair.exact))
    errors, same, apart = [], [], []
    for ours, theirs in zip(found, exact, strict=True):
        check_shapes(name, ours, theirs)
        size = theirs.flatten(1).double().norm(dim=1).clamp(min=1e-12)
        errors.append((ours - theirs).flatten(1).double().norm(dim=1) / size)
        same.append((ours.argmax(dim=1) == theirs.argmax(dim=1)).flatten())
        apart.append((ours - theirs).abs().flatten())
    error = torch.cat(errors).nan_to_num(_NOT_FINITE, _NOT_FINITE)
    told = HeadVerdict(task=pair.task, error=float(error.mean()), error_max=float(error.max()))
    if pair.task == "depth":
        difference = torch.cat(apart).double().mean().nan_to_num(_NOT_FINITE, _NOT_FINITE)
        return told.model_copy(update={"mean_difference": float(difference)})
    return told.model_copy(update={"same_class": float(torch.cat(same).double().mean())})


def _faults_of_tokens(tokens: Agreement, length: float, limit: float) -> list[str]:
    faults = []
    if not tokens.passes(limit):
        faults.append(f"{tokens}, the limit is {limit}")
    if abs(length - 1) > _allowed_error(limit):
        faults.append(
            f"tokens are {length:.4f} times as long as the original's, allowed is 1 +- {_allowed_error(limit):.4f}"
        )
    return faults


def _faults_of_heads(heads: Mapping[str, HeadVerdict], limit: float) -> list[str]:
    allowed = _allowed_error(limit)
    return [
        f"the outputs of head {name} are off by {head.error:.4f} of their size, allowed is {allowed:.4f}"
        for name, head in heads.items()
        if head.error > allowed
    ]


def _allowed_error(limit: float) -> float:
    """Return the distance of unit vectors whose cosine is the limit."""
    return math.sqrt(2 * (1 - limit))


def _costs(engines: Sequence[Engine], batches: Sequence[Tensor], sizes: Sequence[int | None]) -> list[Cost]:
    """Measure engines in turns, so that other work on the computer slows all of them."""
    largest = max(batches, key=len)
    alone, together = _times(engines, largest[:1]), _times(engines, largest)
    return [
        Cost(
            engine=f"{engine.description['name']} {engine.description['precision']}",
            latency_ms=1000 * one,
            images_per_s=len(largest) / many,
            batch_size=len(largest),
            size_bytes=size,
        )
        for engine, one, many, size in zip(engines, alone, together, sizes, strict=True)
    ]


def _times(engines: Sequence[Engine], batch: Tensor) -> list[float]:
    """Return the median time of a call of each engine, seconds; tokens on a device are waited for."""
    for engine in engines:
        engine.encode(batch)
    times: list[list[float]] = [[] for _ in engines]
    started = time.monotonic()
    while not times[0] or time.monotonic() - started < _BUDGET_S:
        for engine, found in zip(engines, times, strict=True):
            begun = time.monotonic()
            engine.encode(batch).cls.cpu()
            found.append(time.monotonic() - begun)
    return [sorted(found)[len(found) // 2] for found in times]
