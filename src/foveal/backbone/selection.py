"""Finding the backbone among all tensors of a checkpoint, whatever stands in front of its names."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from foveal.backbone.recognise import explain_names
from foveal.errors import WeightsError

# Names that wrappers of PyTorch put into the middle of others.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_POSITIONS = ("pos_embed", "embeddings.position_embeddings")
_SSL_HEADS = ("dino_head", "ibot_head")
# Task heads that lie beside the backbone where its own names have no prefix.
_BESIDE = {*_SSL_HEADS, "head", "classifier", "linear_head", "decode_head", "depth_head"}


@dataclass(frozen=True)
class Selection:
    """The parts of a checkpoint.

    Attributes:
        backbone: its tensors, without the prefix.
        prefix: what stood in front of their names, e.g. "teacher.backbone.".
        ssl_heads: the heads of pretraining beside it: "dino_head.*", "ibot_head.*".
        left_out: what else there is, by first name, with the number of tensors.
    """

    backbone: dict[str, Tensor]
    prefix: str
    ssl_heads: dict[str, Tensor]
    left_out: dict[str, int]


def select_backbone(tensors: Mapping[str, Tensor], *, where: str) -> Selection:
    """Find the backbone: the tensors that share a prefix with a positional embedding; a teacher before a student.

    Args:
        tensors: of the whole checkpoint.
        where: names the file in errors.

    Raises:
        WeightsError: there is no backbone, or several that could be meant; the message says what there is.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    clean = {names[name]: tensor for name, tensor in tensors.items()}
    if len(clean) != len(tensors):
        raise WeightsError(f"{where} holds the same tensors with and without a wrapper's prefix; save one state dict")
    prefixes = sorted(
        name.removesuffix(position)
        for name in clean
        for position in _POSITIONS
        if name == position or name.endswith(f".{position}")
    )
    prefix = _choose(prefixes, clean, where=where)
    backbone: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in clean.items():
        inside = name.startswith(prefix) and not (not prefix and name.split(".")[0] in _BESIDE)
        (backbone if inside else rest)[name.removeprefix(prefix) if inside else name] = tensor
    parent = prefix.rpartition(".")[0].rpartition(".")[0]
    parent = f"{parent}." if parent else ""
    heads = {
        name.removeprefix(parent): tensor
        for name, tensor in rest.items()
        if name.startswith(parent) and name.removeprefix(parent).split(".")[0] in _SSL_HEADS
    }
    others = Counter(
        name.split(".")[0] for name in rest if not (name.startswith(parent) and name.removeprefix(parent) in heads)
    )
    return Selection(backbone, prefix, heads, dict(others))


def _choose(prefixes: list[str], tensors: Mapping[str, Tensor], *, where: str) -> str:
    if not prefixes:
        raise WeightsError(f"{where} holds {explain_names({name: tuple(t.shape) for name, t in tensors.items()})}")
    for wanted in ("teacher", "ema"):
        if len(prefixes) > 1:
            prefixes = [prefix for prefix in prefixes if wanted in prefix] or prefixes
    if len(prefixes) > 1:
        listed = ", ".join(prefix or "without prefix" for prefix in prefixes)
        raise WeightsError(
            f"{where} holds {len(prefixes)} backbones ({listed}); save the one you mean as a state dict of its own"
        )
    return prefixes[0]
