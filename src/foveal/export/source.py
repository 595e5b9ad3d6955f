"""What an export is made from: a backbone in float32, its card, and heads that belong to it, each checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import foveal
from foveal.backbone.card import CARD, Card, require_permission
from foveal.backbone.licence import Licence, accept, strictest
from foveal.backbone.source import open_backbone
from foveal.backbone.vit import VisionTransformer
from foveal.engine.foreign import check_prefix, holds_foreign, is_foreign
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError, WeightsError
from foveal.export.card import ExportCard, ExportedHead, Format, Port, Preprocessing, check_target
from foveal.features.extract import Model
from foveal.tasks.head import Head, check_backbone, load_head

# Names of inputs and outputs of a backbone; others of its graph hold a dot, or begin as those in _INSIDE.
TAKEN = ("images", "cls", "patches", "registers")
_INSIDE = ("embedded", "position", "grid_h", "grid_w", "prefix", "pos_embed", "whole_patches", "val_", "node_")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        model: the backbone in float32 by PyTorch, with its card: the reference of every verdict.
        backbone: the network in it.
        heads: by the name of their output.
        licence: strictest terms of all, unaccepted.
    """

    model: Model
    backbone: VisionTransformer
    heads: dict[str, Head]
    licence: Licence

    @property
    def preprocessing(self) -> Preprocessing:
        """What a picture goes through before the graph."""
        card = self.model.card
        return Preprocessing(
            mean=card.mean,
            std=card.std,
            resize_size=card.resize_size,
            crop_size=card.crop_size,
            patch_size=card.backbone.patch_size,
            channels=card.backbone.channels,
        )

    def export_card(self, kind: Format, *, inputs: list[Port], outputs: list[Port], **more: object) -> ExportCard:
        """Return the card of an export of this model."""
        card = self.model.card.unaccepted()
        return ExportCard.model_validate(
            {
                "format": kind,
                "name": card.name,
                "identity": self.model.identity,
                "backbone": card.backbone,
                "licence": self.licence,
                "parents": card.parents,
                "preprocessing": self.preprocessing,
                "inputs": inputs,
                "outputs": outputs,
                "heads": [
                    ExportedHead(name=name, task=head.card.task, classes=head.card.classes, identity=head.identity)
                    for name, head in self.heads.items()
                ],
                "versions": {"foveal": foveal.__version__, "torch": str(torch.__version__)},
                **more,
            }
        )


def open_source(
    model: str | Path,
    *,
    out: str | Path,
    heads: Sequence[str] = (),
    others: Sequence[Licence] = (),
    accept_licence: str | None = None,
    num_heads: int | None = None,
) -> Source:
    """Open what is exported and refuse what must not be, before anything is written.

    Args:
        model: a model folder, a checkpoint, or a name in `foveal models`.
        out: the folder that will be written; nothing may be there.
        heads: head folders, each as FOLDER or NAME=FOLDER; the name, else that of the folder, becomes an output's.
        others: licences of further weights that the export will hold.
        accept_licence: licence that the user accepts, where the terms are not free.
        num_heads: attention heads, where neither the files nor the width tell.

    Raises:
        FovealError: `out` is in use; a backbone of another library; weights that are not finite; a head of another
            backbone, without a folder, or of a name that is taken; terms that are not accepted.
    """
    check_target(Path(out))
    found = open_original(model, heads=heads, num_heads=num_heads)
    licences = [head.card.licence for head in found.heads.values()]
    return replace(found, licence=_permitted(model, found.model.card, licences, others, accept_licence))


def open_original(model: str | Path, *, heads: Sequence[str] = (), num_heads: int | None = None) -> Source:
    """Open what was exported, to compare with it; see `open_source`, which asks for permission too."""
    named = {name: load_head(folder) for name, folder in _named(heads).items()}
    backbone, card = open_own(model, num_heads=num_heads)
    loaded = Model(TorchEngine(backbone), card)
    for name, head in named.items():
        check_backbone(head.card, loaded)
        _check_finite(head, name=name)
    licence = strictest([card.licence, *(head.card.licence for head in named.values())])
    return Source(loaded, backbone, named, licence.unaccepted())


def open_own(model: str | Path, *, num_heads: int | None = None) -> tuple[VisionTransformer, Card]:
    """Open a backbone of foveal's own network; FovealError for one of another library, or what `open_backbone` says."""
    if is_foreign(model) or holds_foreign(model):
        raise FovealError(
            f"{model} is a backbone of another library; export takes those of foveal's own network; export it there"
        )
    check_prefix(model)
    return open_backbone(model, num_heads=num_heads)


def _check_finite(head: Head, *, name: str) -> None:
    """Refuse a head with weights that are not finite; those of the backbone are checked where it is opened."""
    bad = [key for key, tensor in head.network.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise WeightsError(
            f"the head {name} holds NaN or infinite values in {bad[0]}; fit it again with a lower learning rate"
        )


def _named(heads: Sequence[str]) -> dict[str, str]:
    """Return folders of heads by the name of their output."""
    found: dict[str, str] = {}
    for text in heads:
        name, separator, folder = text.partition("=")
        if not separator:
            name, folder = Path(text).resolve().name, text
        if not _NAME.fullmatch(name):
            raise FovealError(f"head {text}: '{name}' is no name for an output; use letters, digits, _ and -")
        if name in TAKEN or name in found or name.startswith(_INSIDE):
            raise FovealError(f"head {text}: the name '{name}' is taken; give another, as in --head NAME={folder}")
        found[name] = folder
    return found


def _permitted(
    model: str | Path, card: Card, heads: Sequence[Licence], others: Sequence[Licence], accept_licence: str | None
) -> Licence:
    """Return the terms of a model with what goes along, accepted by nobody, once exporting them is allowed."""
    licence = strictest([card.licence, *heads, *others])
    if licence.name == card.licence.name or not (heads or others):
        folder = Path(model) if (Path(model) / CARD).is_file() else None
        require_permission(card, action="export", accept_licence=accept_licence, folder=folder)
        return card.licence.unaccepted()
    what = f"{card.name} with {'other weights' if others else 'its heads'}"
    accept(licence, what=what, action="export", name=accept_licence)
    return licence
