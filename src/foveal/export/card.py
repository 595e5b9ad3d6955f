"""The folder of an export: its card `export.json` beside the files, published whole, or kept aside if refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from foveal import files
from foveal.backbone.card import Parent
from foveal.backbone.licence import Licence
from foveal.backbone.variants import BackboneConfig
from foveal.errors import FovealError
from foveal.files import publish, publish_new, sha256_of

CARD = "export.json"
# The command that gives a verdict later, for notes.
VERIFY = "foveal export verify DIR MODEL"

Format = Literal["onnx", "openvino", "tensorrt", "huggingface", "tower", "triton"]


class ExportError(FovealError):
    """An export that cannot be made, read or trusted."""


class ExportRefused(ExportError):
    """An export that does not agree with the original; what was made is kept aside.

    Attributes:
        card: of what is kept.
    """

    def __init__(self, message: str, card: "ExportCard") -> None:
        super().__init__(message)
        self.card = card


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Port(_Part):
    """An input or output of a graph: its name, its type as in NumPy, and its shape; a name stands for any number."""

    name: str
    dtype: str
    shape: list[int | str]


class Preprocessing(_Part):
    """What a picture goes through before the graph: short side to `resize_size` by antialiased bicubic interpolation,
    the centre `crop_size` squared, values in 0..1, less `mean`, over `std`, channel by channel.
    """

    mean: list[float]
    std: list[float]
    resize_size: int
    crop_size: int
    patch_size: int
    channels: int


class ExportedHead(_Part):
    """A head in an export: the name of its output, what it answers, its classes by number, and which head it is."""

    name: str
    task: Literal["classification", "segmentation", "depth"]
    classes: list[str]
    identity: str


class ExportCard(_Part):
    """What an export says of itself.

    Attributes:
        format: what kind of export.
        name: of the model.
        identity: hash of the backbone's weights and configuration.
        backbone: its configuration.
        licence: strictest terms of model and heads, accepted by nobody; they hold for the export too.
        parents: weights that the model was made from.
        preprocessing: what the inputs went through.
        inputs: of the graph; empty for formats without one.
        outputs: likewise.
        opset: of an ONNX graph.
        precision: of the weights: fp32, fp16 or int8; of plans, that TensorRT may use.
        heads: in the export.
        built: False where what is here has to be built elsewhere first.
        notes: what a user should know, a sentence each.
        verdict: what the comparison with the original has shown; None where there was none.
        refused: why the export was not published; None where it was.
        versions: of the packages that made it.
        sha256: of each file, by its path below the folder.
    """

    format_version: Literal[1] = 1
    format: Format
    name: str
    identity: str
    backbone: BackboneConfig
    licence: Licence
    parents: list[Parent] = []
    preprocessing: Preprocessing
    inputs: list[Port] = []
    outputs: list[Port] = []
    opset: int | None = None
    precision: str = "fp32"
    heads: list[ExportedHead] = []
    built: bool = True
    notes: list[str] = []
    verdict: dict[str, Any] | None = None
    refused: str | None = None
    versions: dict[str, str] = {}
    sha256: dict[str, str] = {}


def check_target(out: Path) -> None:
    """Refuse, before long work, a place where something is already, also where a refused export would be kept."""
    if out.name in ("", ".."):
        raise ExportError(f"{out} has no name to give to a new folder; name one, such as {out / 'exported'}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists; choose another place, or remove it first")
    aside = _aside(out)
    if aside.exists() and not (aside / CARD).is_file():
        raise ExportError(f"{aside}, where a refused export is kept, is something else; choose another place")


def _aside(out: Path) -> Path:
    return out.with_name(f"{out.name}.refused")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a hidden folder beside `out` to write an export into; it is removed if `publish_export` was not reached.

    Raises:
        ExportError: something is at `out`, or the disk refuses what is written.
    """
    check_target(out)
    try:
        with files.staged(out) as staging:
            yield staging
    except OSError as error:
        raise ExportError(f"{out} cannot be written ({error}); free space or choose another place") from error


def publish_export(staging: Path, out: Path, card: ExportCard) -> ExportCard:
    """Write the card into a folder of `staged` and move the folder into place; an export with `refused` goes aside.

    Returns:
        The card with the sha256 of every file.

    Raises:
        ExportRefused: the card says that it is refused; the folder lies at `out` with the ending .refused.
        ExportError: another process was first.
    """
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    hashes = {path.relative_to(staging).as_posix(): sha256_of(path) for path in paths}
    card = card.model_copy(update={"sha256": hashes})
    (staging / CARD).write_text(card.model_dump_json(indent=2) + "\n")
    if card.refused is not None:
        aside = _aside(out)
        publish(staging, aside)
        raise ExportRefused(
            f"{out} is not written: {card.refused}; what was made is kept in {aside}, whose {CARD} says more",
            card,
        )
    if not publish_new(staging, out):
        raise ExportError(f"{out} was written by another process meanwhile; choose another place, or remove it first")
    return card


def read_export(folder: str | Path, *, verify: bool = True) -> ExportCard:
    """Read the card of an export.

    Args:
        folder: of the export.
        verify: compare the sha256 of every file with the card's.

    Raises:
        ExportError: no export, a card that cannot be understood, or a damaged file.
    """
    folder = Path(folder)
    path = folder / CARD
    if not path.is_file():
        raise ExportError(f"{folder} is no export: it has no {CARD}; foveal export writes one")
    try:
        card = ExportCard.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise ExportError(f"{path} cannot be understood ({error}); export the model again") from error
    for name, wanted in card.sha256.items() if verify else ():
        if not (folder / name).is_file() or sha256_of(folder / name) != wanted:
            raise ExportError(f"{folder / name} is missing or damaged; export the model again")
    return card
