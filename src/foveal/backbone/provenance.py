"""The card of weights that came without one: what the files beside them say, and what has to be assumed."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from foveal.backbone.containers import Container
from foveal.backbone.hub import checkpoint_of
from foveal.backbone.huggingface import preprocessor_json
from foveal.backbone.licence import UNKNOWN
from foveal.backbone.selection import Selection
from foveal.backbone.transform import transform_of
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.weights import Card
from foveal.errors import WeightsError

CONFIG, PREPROCESSOR, README = "config.json", "preprocessor_config.json", "README.md"
EMBEDDED_CARD = "foveal_card"  # key of the card in the metadata of safetensors files that `convert` writes
logger = logging.getLogger(__name__)
_SHAPES = ("width", "depth", "num_heads", "ffn", "patch_size", "image_size", "channels", "num_registers")


@dataclass(frozen=True)
class Beside:
    """What was found beside the tensors.

    Attributes:
        network: the settings of the backbone in a Hugging Face config.json; empty where there is none.
        timm: the contents of a timm config.json; empty where there is none.
        preprocessor: the contents of preprocessor_config.json; empty where there is none.
        licence: as a README's header or timm's config names it.
        card: the card that `convert` put into the metadata of the file.
    """

    network: Mapping[str, object]
    timm: Mapping[str, object]
    preprocessor: Mapping[str, object]
    licence: str | None
    card: Card | None

    def num_heads(self) -> int | None:
        """Return the number of attention heads that is written down somewhere; WeightsError when it is none."""
        arguments = self.timm.get("model_args")
        said = self.network.get("num_attention_heads")
        said = arguments.get("num_heads", said) if isinstance(arguments, dict) else said
        if said is None and self.card is not None:
            return self.card.backbone.num_heads
        if said is not None and (type(said) is not int or said < 1):
            raise WeightsError(f"{CONFIG} gives {said!r} attention heads; expected a whole number above 0")
        return said


def read_beside(path: Path, container: Container) -> Beside:
    """Read what lies beside the weights at `path`, and the card in their metadata.

    Raises:
        WeightsError: one of the files cannot be understood.
    """
    folder = path if path.is_dir() else path.parent
    config = _json(folder / CONFIG)
    inner = config.get("backbone_config")  # of a depth or segmentation model around the backbone
    timm = config if "architecture" in config else {}
    pretrained = timm.get("pretrained_cfg")
    licence = pretrained.get("license") if isinstance(pretrained, dict) else None
    card = None
    if EMBEDDED_CARD in container.metadata:
        try:
            card = Card.model_validate_json(container.metadata[EMBEDDED_CARD]).unaccepted()
        except ValidationError as error:
            raise WeightsError(f"the card in the metadata of {path} cannot be understood: {error}") from error
    return Beside(
        network=inner if isinstance(inner, dict) else ({} if timm else config),
        timm=timm,
        preprocessor=_json(folder / PREPROCESSOR),
        licence=licence if isinstance(licence, str) else _licence_of(folder / README),
        card=card,
    )


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} cannot be understood ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds no settings; copy it again")
    return found


def _licence_of(readme: Path) -> str | None:
    """Return the licence in the YAML header of a model card of Hugging Face."""
    if not readme.is_file():
        return None
    with open(readme, encoding="utf-8", errors="replace") as file:
        header = re.match(r"---\n(.*?)\n---", file.read(65536), re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.-]+)", header[1], re.MULTILINE) if header else None
    return found[1] if found else None


def make_card(
    path: Path, layout: str, config: BackboneConfig, beside: Beside, container: Container, selection: Selection
) -> tuple[Card, list[str]]:
    """Return the card of weights read from `path`, and what in it is an assumption or was left out, in words.

    Raises:
        WeightsError: the card in the metadata of the file is that of another network.
    """
    lineage: dict[str, object] = {"format": layout, "source": path.name, "sha256": container.sha256}
    if selection.prefix:
        lineage["taken_from"] = selection.prefix.rstrip(".")
    if beside.card is not None:
        if any(getattr(beside.card.backbone, name) != getattr(config, name) for name in _SHAPES):
            raise WeightsError(
                f"the card in the metadata of {path} describes another network ({beside.card.backbone}); "
                "remove it, or take the file that belongs to it"
            )
        lineage["parent"] = beside.card.lineage
        card = beside.card.model_copy(update={"lineage": lineage, "sha256": container.sha256})
        return card, _overruled(path, card, beside)
    fields: dict[str, object] = {"name": path.stem, "backbone": config, "lineage": lineage, "sha256": container.sha256}
    if beside.licence:
        fields["licence"] = beside.licence
    pretrained = beside.timm.get("pretrained_cfg")
    timm = pretrained if isinstance(pretrained, dict) else {}
    try:
        found, assumed, ignored = transform_of(config, preprocessor=beside.preprocessor, timm=timm)
        card = Card.model_validate(fields | found)
    except (ValidationError, TypeError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"the settings beside {path} make no sense ({error}); copy them again") from error
    ignored = [f"ignored: the files say {text}, which a card does not hold" for text in ignored]
    for text in ignored:
        logger.warning("%s: %s; features differ from those of the library", path, text)
    return card, assumed + ignored


def _overruled(path: Path, card: Card, beside: Beside) -> list[str]:
    """Say where a preprocessor_config.json was changed after `convert` wrote it with the card in the weights."""
    if not beside.preprocessor or beside.preprocessor == preprocessor_json(
        mean=card.mean, std=card.std, crop_size=card.crop_size, resize_size=card.resize_size
    ):
        return []
    text = f"ignored: {PREPROCESSOR} is not that of the card in the weights, which is followed"
    logger.warning("%s: %s; put the change into the card of a model folder", path, text)
    return [text]


def recognised(card: Card) -> Card:
    """Give the name and licence of a known checkpoint to a file that is one to the bit and says nothing of its own."""
    row = checkpoint_of(card.sha256.values())
    if row is None or card.licence != UNKNOWN:
        return card
    return card.model_copy(update={"name": row.name, "licence": row.licence})
