"""Head folders: `head.safetensors` beside its card `head.json`, which names the backbone that it was fitted on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import nn

from foveal.backbone.licence import UNKNOWN, Licence
from foveal.backbone.weights import check_tensors, load_tensors
from foveal.errors import FovealError, WeightsError
from foveal.files import publish, sha256_of
from foveal.tasks.classify import AttentiveClassifier, ClassPredictor, LinearClassifier, MlpClassifier
from foveal.tasks.depth import DptDepth, LinearDepth
from foveal.tasks.segment import DptSegmenter, LinearSegmenter, MlpSegmenter

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.tasks.predict import Predictor

CARD, WEIGHTS = "head.json", "head.safetensors"

Task = Literal["classification", "segmentation", "depth"]


class HeadCard(BaseModel):
    """What a head folder says of itself.

    Attributes:
        name: of the head.
        task: what it answers.
        architecture: "linear", "mlp", "attentive" or "dpt".
        settings: arguments of that architecture.
        layers: the blocks that it reads, numbered from 0.
        norm: whether it reads them after the final norm.
        backbone: identity (hash of weights and configuration) of the backbone; None for public heads, whose files do
            not name one: then width and depth decide.
        backbone_name: for messages.
        width: D of the backbone.
        depth: blocks of the backbone.
        classes: names by number, for classification and segmentation.
        licence: of the backbone, which the head inherits.
        lineage: how it was made.
        sha256: of the weights.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    name: str
    task: Task
    architecture: str
    settings: dict[str, Any] = {}
    layers: list[int]
    norm: bool
    backbone: str | None
    backbone_name: str
    width: int
    depth: int
    classes: list[str] = []
    licence: Licence = UNKNOWN
    lineage: dict[str, object] = {}
    sha256: str = ""


@dataclass(frozen=True)
class Head:
    """A fitted head: its network, in evaluation mode on the CPU, and its card."""

    network: nn.Module
    card: HeadCard

    @property
    def identity(self) -> str:
        """The hash of the weights and of the card, which tells one head from another whatever the files."""
        digest = sha256(self.card.model_dump_json(exclude={"sha256"}).encode())
        for name, values in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def attach(self, model: "Model") -> "Predictor | ClassPredictor":
        """Return what predicts with this head on a model; WeightsError where it belongs to another."""
        from foveal.tasks.predict import Predictor

        return (ClassPredictor if self.card.task == "classification" else Predictor)(model, self)


_NETWORKS: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("classification", "linear"): LinearClassifier,
    ("classification", "mlp"): MlpClassifier,
    ("classification", "attentive"): AttentiveClassifier,
    ("segmentation", "linear"): LinearSegmenter,
    ("segmentation", "mlp"): MlpSegmenter,
    ("segmentation", "dpt"): DptSegmenter,
    ("depth", "linear"): LinearDepth,
    ("depth", "dpt"): DptDepth,
}


def build_network(card: HeadCard) -> nn.Module:
    """Return the network that a card describes, with weights as drawn."""
    architectures = [architecture for task, architecture in _NETWORKS if task == card.task]
    if card.architecture not in architectures:
        raise FovealError(f"architecture='{card.architecture}' for {card.task}; choose {', '.join(architectures)}")
    return _NETWORKS[card.task, card.architecture](card.width, **card.settings)


def check_backbone(card: HeadCard, model: "Model") -> None:
    """Refuse a head that was fitted on another backbone.

    Raises:
        WeightsError: names both.
    """
    backbone = model.card.backbone
    if card.backbone is not None:
        if model.identity != card.backbone:
            raise WeightsError(
                f"the head {card.name} was fitted on {card.backbone_name} ({card.backbone[:12]}), and this model is "
                f"{model.card.name} ({model.identity[:12]}); load that backbone, or fit a head on this one"
            )
    elif (backbone.width, backbone.depth) != (card.width, card.depth):
        raise WeightsError(
            f"the head {card.name} is for a backbone of width {card.width} with {card.depth} blocks, and "
            f"{model.card.name} has width {backbone.width} and {backbone.depth} blocks; load the backbone it belongs to"
        )


def save_head(folder: str | Path, head: Head) -> HeadCard:
    """Write a head folder in one move; see `foveal.files.publish`.

    Raises:
        WeightsError: the folder exists and is no head folder, or it cannot be written.
    """
    folder = Path(folder)
    check_target(folder)
    staging = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in head.network.state_dict().items()}
        save_file(tensors, staging / WEIGHTS)
        card = head.card.model_copy(update={"sha256": sha256_of(staging / WEIGHTS)})
        (staging / CARD).write_text(card.model_dump_json(indent=2) + "\n")
        publish(staging, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"cannot write the head folder {folder}: {error}; free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def check_target(folder: Path) -> None:
    """Refuse, before long work, a place where something other than a head folder is."""
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} exists and is not a head folder; choose another place or remove it")


def _check_whole(card: HeadCard) -> None:
    """Raise ValueError where parts of a card contradict each other."""
    num_levels = card.settings.get("num_levels", 4 if card.architecture == "dpt" else 1)
    if len(card.layers) != num_levels:
        raise ValueError(f"layers={card.layers} for a head that reads {num_levels}")
    if card.classes and len(card.classes) != (num_classes := card.settings.get("num_classes")):
        raise ValueError(f"{len(card.classes)} names for {num_classes} classes")


def load_head(folder: str | Path) -> Head:
    """Read a head folder back.

    Raises:
        WeightsError: no head folder, a damaged file, or weights that do not fit the card; the message says which.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not (folder / CARD).is_file() or not path.is_file():
        raise WeightsError(f"{folder} is not a head folder: it needs {CARD} and {WEIGHTS}; foveal head fit writes one")
    try:
        card = HeadCard.model_validate(json.loads((folder / CARD).read_text()))
        _check_whole(card)
        network = build_network(card)
    except (OSError, ValueError, TypeError, ValidationError, RuntimeError, AssertionError) as error:
        raise WeightsError(f"{folder / CARD} cannot be understood ({error}); copy the head folder again") from error
    if (seen := sha256_of(path)) != card.sha256:
        raise WeightsError(f"{path} is damaged: its sha256 is {seen}, the card says {card.sha256}; copy it again")
    network.load_state_dict(check_tensors(load_tensors(path), network.state_dict(), where=str(path)))
    return Head(network.eval(), card)
