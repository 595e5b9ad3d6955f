"""The card of a model folder: what the weights are, where they come from, and under which licence they are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from foveal.backbone.licence import UNKNOWN, Licence, accept, licence_named, strictest
from foveal.backbone.variants import BackboneConfig
from foveal.errors import WeightsError
from foveal.files import write_atomically

CARD = "model.json"
FORMAT_VERSION: Literal[2] = 2


class Parent(BaseModel):
    """Weights that a model was made from: their name, licence and the sha256 of each file."""

    model_config = ConfigDict(extra="forbid")

    name: str
    licence: Licence
    sha256: dict[str, str]


class Card(BaseModel):
    """What a model folder says of itself.

    `mean` and `std` normalise channels given in 0..1. `crop_size` is the image size in pixels that features are
    extracted at by default; `resize_size` the length of the shorter side before that crop. `lineage` tells how the
    weights were made, `parents` from which others. `sha256` is that of each file beside the card.

    `licence` may be given by name; see `licence_named`. Cards of format 1, where it was a sentence, are read so.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    backbone: BackboneConfig
    mean: list[float] = [0.485, 0.456, 0.406]
    std: list[float] = [0.229, 0.224, 0.225]
    crop_size: int = 224
    resize_size: int = 256
    licence: Licence = UNKNOWN
    lineage: dict[str, object] = {}
    parents: list[Parent] = []
    sha256: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("format_version") == 1:
            return {**values, "format_version": FORMAT_VERSION}
        return values

    @field_validator("format_version", mode="before")
    @classmethod
    def _check_version(cls, value: object) -> object:
        if isinstance(value, int) and value > FORMAT_VERSION:
            raise ValueError(
                f"this card is of format {value}, this foveal reads up to {FORMAT_VERSION}; upgrade foveal, or"
            )
        return value

    @field_validator("licence", mode="before")
    @classmethod
    def _licence_by_name(cls, value: object) -> object:
        return licence_named(value) if isinstance(value, str) else value

    def unaccepted(self) -> "Card":
        """Return the card as it may travel: without who accepted which terms."""
        parents = [parent.model_copy(update={"licence": parent.licence.unaccepted()}) for parent in self.parents]
        return self.model_copy(update={"licence": self.licence.unaccepted(), "parents": parents})


def inherit(card: Card, parents: Sequence[Card]) -> Card:
    """Return the card of a model made from `parents`: they are listed, and the strictest terms of all apply.

    Args:
        card: of the child as it would be without parents; its own licence counts too.
        parents: cards of the models whose weights, features or outputs went into it.
    """
    listed = [Parent(name=parent.name, licence=parent.licence.unaccepted(), sha256=parent.sha256) for parent in parents]
    licence = strictest([card.licence, *(parent.licence for parent in parents)])
    return card.model_copy(update={"licence": licence, "parents": [*card.parents, *listed]})


def require_permission(
    card: Card, *, action: str, accept_licence: str | None = None, folder: str | Path | None = None
) -> Card:
    """Return the card if its licence allows `action`; call it before weights are exported or served.

    "own" and "permissive" terms always do. Others do once they were accepted by name for this action, which is recorded
    in the card.

    Args:
        card: of the model.
        action: "export" or "serve", for the record and the message.
        accept_licence: what the user gave as --accept-licence.
        folder: the model folder; a new acceptance is written to its card, so that it need not be given again.

    Raises:
        LicenceError: not accepted; the message names the licence and the option.
        WeightsError: the acceptance cannot be written.
    """
    licence = accept(card.licence, what=card.name, action=action, name=accept_licence)
    if licence == card.licence:
        return card
    card = card.model_copy(update={"licence": licence})
    if folder is not None:
        write_card(Path(folder), card)
    return card


def read_card(folder: Path) -> Card:
    """Read the card of a model folder; WeightsError when there is none or it cannot be understood."""
    path = folder / CARD
    if not path.is_file():
        near = folder / "model"
        hint = f"; did you mean {near}?" if (near / CARD).is_file() else "; give the folder that holds model.json"
        raise WeightsError(f"{folder} is not a model folder: it has no {CARD}{hint}")
    try:
        return Card.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise WeightsError(f"{path} cannot be understood: {'; '.join(found[:3])}; copy or download it again") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be understood: {error}; copy or download it again") from error


def write_card(folder: Path, card: Card) -> None:
    """Replace the card of a model folder in one move.

    Raises:
        WeightsError: it cannot be written; the old card is still there.
    """
    try:
        write_atomically(folder / CARD, card_text(card))
    except OSError as error:
        raise WeightsError(f"{folder / CARD} cannot be written ({error}); make the folder writable") from error


def card_text(card: Card) -> str:
    """Return a card as the text of model.json."""
    return card.model_dump_json(indent=2) + "\n"
