"""What is served: a model, its heads and a feature store, opened and verified before anybody sees them."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.card import CARD, read_card, require_permission
from foveal.backbone.licence import accept
from foveal.engine.auto import NUM_IMAGES
from foveal.engine.base import Engine, Precision
from foveal.engine.choose import EngineName
from foveal.errors import FovealError
from foveal.export.source import TAKEN
from foveal.features.extract import Model, load
from foveal.features.origin import check_model
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.one_run import AnyPredictor, share_blocks, with_engine
from foveal.serve.probes import probe_images
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import Head, check_backbone, load_head

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Source:
    """Where what is served lies, and how it is opened.

    Attributes:
        model: whatever `foveal.load` takes.
        heads: head folders, each as FOLDER or NAME=FOLDER.
        store: of features, to be searched.
        images: pictures like those to come, in any form that `ImageSet.open` takes; the engine is chosen on them. None
            takes generated ones.
        name: under which the model is served; None is that of its card.
        engine: see `foveal.load`.
        precision: see there.
        fast: see there.
        num_heads: see there.
        accept_licence: what the user gave as --accept-licence.
    """

    model: str
    heads: tuple[str, ...] = ()
    store: Path | None = None
    images: str | None = None
    name: str | None = None
    engine: EngineName = "auto"
    precision: Precision | None = None
    fast: bool = False
    num_heads: int | None = None
    accept_licence: str | None = None

    def changed(self, *, model: str | None, heads: Sequence[str] | None, accept_licence: str | None) -> "Source":
        """Return another source; None keeps what is there."""
        found = self if model is None else replace(self, model=model)
        found = found if heads is None else replace(found, heads=tuple(heads))
        return found if accept_licence is None else replace(found, accept_licence=accept_licence)


@dataclass(frozen=True, eq=False)
class Loaded:
    """What is served. Nothing in it changes: another model is another one of these.

    Attributes:
        name: of the model.
        model: with the engine that was chosen for it.
        heads: by name, each with the engine chosen for the blocks that it reads.
        store: of features, or None.
        source: where all this lies.
    """

    name: str
    model: Model
    heads: dict[str, AnyPredictor] = field(default_factory=dict)
    store: FeatureStore | None = None
    source: Source | None = None


def open_source(source: Source, *, buckets: Sequence[int] = (1,)) -> Loaded:
    """Open what is to be served, choose its engine, verify it, and run it once at each size of batch.

    Args:
        source: where it lies.
        buckets: sizes of batches to warm up for.

    Raises:
        LicenceError: a licence has to be accepted first.
        FovealError: something that is missing, damaged, belongs to another model, or answers no numbers.
    """
    if source.fast and source.images is None:
        raise FovealError("int8 is calibrated on pictures like those to come; give some with --images, or drop --fast")
    images = None if source.images is None else ImageSet.open(source.images)
    folder = Path(source.model) if (Path(source.model) / CARD).is_file() else None
    if folder is not None:
        require_permission(read_card(folder), action="serve", accept_licence=source.accept_licence, folder=folder)
    opened = load(
        source.model,
        engine=source.engine,
        precision=source.precision,
        fast=source.fast,
        num_heads=source.num_heads,
    )
    require_permission(opened.card, action="serve", accept_licence=source.accept_licence)
    name = as_name(opened.card.name) if source.name is None else checked_name(source.name)
    probes = _probes(opened)
    model = _settled(opened, images, probes, None)
    heads: dict[str, AnyPredictor] = {}
    for text in source.heads:
        head_name, head = _open_head(text, opened, source.accept_licence)
        predictor = _settled(opened, images, probes, head.card.layers).with_head(head)
        if head_name in heads:
            raise FovealError(f"two heads are called {head_name}; give one another name: --head OTHER={text}")
        if head_name in TAKEN:
            raise FovealError(f"a head is called {head_name}, as a tensor is; give another: --head OTHER={text}")
        heads[head_name] = predictor
    store = None
    if source.store is not None:
        store = FeatureStore.open(source.store)
        check_model(store, model)
        check_searchable(store)
    loaded = Loaded(name, *share_blocks(model, heads), store, source)
    _verify(loaded, probes, buckets)
    return loaded


def check_searchable(store: FeatureStore) -> str:
    """Return which vectors of a store are searched, "cls" or "mean"; FovealError where it has neither."""
    for token in ("cls", "mean"):
        if token in store.names:
            return token
    raise FovealError(
        f"{store.path} holds {', '.join(store.names)}, and a server searches cls or mean; "
        "extract one of them: foveal extract IMAGES --model MODEL --tokens cls --out STORE"
    )


def checked_name(name: str) -> str:
    """Return a name that can stand in an address; FovealError for any other."""
    if not NAME.fullmatch(name):
        raise FovealError(
            f"the name {name!r} cannot stand in an address; give one of letters, digits, '.', '_' and '-': "
            "--name NAME for a model, --head NAME=FOLDER for a head"
        )
    return name


def as_name(text: str) -> str:
    """Return the name of a card or a folder as it can stand in an address.

    Example:
        >>> as_name("linear on dinov2_vits14")
        'linear-on-dinov2_vits14'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "unnamed"


def _open_head(text: str, model: Model, accept_licence: str | None) -> tuple[str, Head]:
    name, found, folder = text.partition("=")
    if not found or Path(text).exists():
        found, folder = "", text
    head = load_head(folder)
    accept(head.card.licence, what=f"the head {head.card.name}", action="serve", name=accept_licence)
    check_backbone(head.card, model)
    # By its folder, as exports call it: requests to an exported repository are requests here.
    return checked_name(name) if found else as_name(Path(folder).resolve().name), head


def _settled(model: Model, images: ImageSet | None, probes: Tensor, layers: Sequence[int] | None) -> Model:
    """Return the model with the engine chosen for some blocks, and nothing left to choose."""
    if images is not None:
        return model.settle(images, layers=layers)
    return with_engine(model, model.engine.settle([probes], layers))


def _probes(model: Model) -> Tensor:
    """Return generated images as this model takes them, as many as every engine can be chosen on."""
    size, card = math.ceil(model.card.resize_size * 1.2), model.card
    preprocess = model.preprocessing()
    pictures = probe_images(NUM_IMAGES, height=size, width=size, channels=card.backbone.channels)
    return torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))


def _verify(loaded: Loaded, probes: Tensor, buckets: Sequence[int]) -> None:
    """Run model and heads on the probes; FovealError where an answer is no number."""
    for bucket in buckets:
        images = probes.repeat(math.ceil(bucket / len(probes)), 1, 1, 1)[:bucket]
        _check_finite(loaded.model.engine, images, loaded.name)
    for predictor in loaded.heads.values():
        if isinstance(predictor, ClassPredictor):
            predictor.of_arrays([probes[0].numpy()])
        else:
            predictor.scores(probes[:1])
    logger.info("%s: %s, heads: %s", loaded.name, loaded.model.engine.description, ", ".join(loaded.heads) or "none")


def _check_finite(engine: Engine, images: Tensor, name: str) -> None:
    if not all(bool(part.isfinite().all()) for part in engine.encode(images)):
        raise FovealError(
            f"{name} answers numbers that are not finite; its weights are damaged, or diverged in training"
        )
