"""What fine-tuning begins with: a model whose weights may change, and whether a head and data fit it."""

from dataclasses import replace

from foveal.backbone.card import Card
from foveal.engine.foreign import holds_foreign, is_foreign
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.finetune.settings import FinetuneSettings
from foveal.pretrain.start.weights import StartWeights, open_start


def open_model(source: str, *, num_heads: int | None = None) -> tuple[StartWeights, Model]:
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
    start = open_start(source, num_heads=num_heads)
    return start, Model(TorchEngine(start.backbone), start.card)


def with_crop_size(settings: FinetuneSettings, card: Card) -> FinetuneSettings:
    """Return the settings with the size of crops: that of the model, where none is given."""
    return settings if settings.crop_size is not None else replace(settings, crop_size=card.crop_size)
