"""The layout of the official checkpoints: our own key names, but that blocks may be chunked for FSDP.

Source of the chunked form: the public code's `block_chunks`: chunk c of the blocks is a list padded with empty places
up to its first block, so that block i keeps its number: `blocks.<c>.<i>.`.
"""

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from foveal.errors import WeightsError

_CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")


def matches(names: set[str]) -> bool:
    """Whether these are the keys of an official backbone: our names with a mask token or registers or `w12`."""
    ours = "patch_embed.proj.weight" in names and "cls_token" in names
    return ours and bool(names & {"mask_token", "register_tokens"} or any(".mlp.w12." in name for name in names))


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names: `blocks.<chunk>.<i>.` becomes `blocks.<i>.`.

    Chunks that are not padded, where i starts again at 0 in every chunk, are numbered through.

    Raises:
        WeightsError: chunks in which a block is missing.
    """
    found = {name: _CHUNKED.fullmatch(name) for name in tensors}
    places = sorted({(int(m[1]), int(m[2])) for m in found.values() if m})
    number = {place: place[1] for place in places}
    if len(set(number.values())) != len(places):
        sizes = Counter(chunk for chunk, _ in places)
        if places != [(chunk, i) for chunk in range(len(sizes)) for i in range(sizes[chunk])]:
            raise WeightsError("the numbers of the chunked blocks have gaps; the checkpoint is incomplete")
        number = {place: i for i, place in enumerate(places)}
    return {f"blocks.{number[int(m[1]), int(m[2])]}.{m[3]}" if m else name: tensors[name] for name, m in found.items()}
