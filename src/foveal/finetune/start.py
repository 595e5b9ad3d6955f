"""What fine-tuning begins with: a model whose weights may change, and whether a head and data fit it."""

from collections.abc import Sequence
from dataclasses import replace

from foveal.backbone.card import Card
from foveal.engine.foreign import holds_foreign, is_foreign
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.finetune.settings import FinetuneSettings
from foveal.pretrain.start.weights import StartWeights, open_start
from foveal.tasks.head import HeadCard


def open_model(source: str) -> tuple[StartWeights, Model]:
    """Return the weights to begin with, and the same network as a model, for what asks of its identity.

    Raises:
        FovealError: a network of another library.
        WeightsError, DownloadError: as `open_start`.
    """
    if is_foreign(source) or holds_foreign(source):
        raise FovealError(
            f"{source} is a network of another library, which foveal runs but does not train; give a model folder, a "
            "checkpoint, or a name in `foveal models`; foveal convert makes a model folder of many others"
        )
    start = open_start(source)
    return start, Model(TorchEngine(start.backbone), start.card)


def with_crop_size(settings: FinetuneSettings, card: Card) -> FinetuneSettings:
    """Return the settings with the size of crops: that of the model, where none is given."""
    return settings if settings.crop_size is not None else replace(settings, crop_size=card.crop_size)


def check_classes(card: HeadCard, classes: Sequence[str], *, data: str) -> None:
    """Refuse data of other classes than those of a head."""
    if list(classes) != card.classes:
        raise FovealError(
            f"the head {card.name} knows {len(card.classes)} classes, {', '.join(card.classes[:3])}, ...; {data} has "
            f"{len(classes)}, {', '.join(classes[:3])}, ...; give data of the same classes, or leave --head out"
        )
