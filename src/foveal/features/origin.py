"""The model that made a store, opened again: from where the store says it lay, and run as it was run then."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.engine.base import Engine
from foveal.engine.choose import check_options
from foveal.engine.foreign import is_foreign
from foveal.errors import FovealError
from foveal.features.extract import Model, batches_of, load
from foveal.features.store import ENGINE, FeatureStore

logger = logging.getLogger(__name__)


def open_store_model(store: FeatureStore, model: str | Path | None = None, *, num_heads: int | None = None) -> Model:
    """Return the model that made a store; whatever lies in its place now is compared by the hash of its weights.

    Args:
        store: an open store.
        model: where the model lies; None is where it lay when the store was made.
        num_heads: attention heads, as in `foveal.load`; None with `model` None is as then.

    Raises:
        FovealError: the place is not recorded or gone, or the model there is another one.
    """
    if model is None:
        origin = store.card.origin
        if origin is None:
            raise FovealError(
                f"{store.path} does not say where its model lies, {described(store.stamp['model'])}; give it by --model"
            )
        model = str(origin["model"])
        num_heads = origin["num_heads"] if num_heads is None else num_heads
        if Path(model).is_absolute() and not Path(model).exists():
            raise FovealError(
                f"the model of {store.path}, {described(store.stamp['model'])}, was at {model}, which is gone; "
                "give its new place by --model"
            )
    opened = load(model, num_heads=num_heads, **_load_options(store, foreign=is_foreign(model)))
    check_model(store, opened)
    return opened


def check_model(store: FeatureStore, model: Model) -> None:
    """Refuse a model that did not make a store; FovealError names both."""
    wanted, given = identity_of(store), identity_of(model)
    if given["sha256"] != wanted["sha256"]:
        raise FovealError(
            f"{store.path} holds features of the model {described(wanted)}, and this is {described(given)}; "
            "search with the store's model, or extract a store with this one"
        )


def store_engine(store: FeatureStore, model: Model, arrays: Sequence[np.ndarray]) -> Engine:
    """Return the engine that a store was made with, where this model and computer have it; else warn.

    Args:
        store: an open store.
        model: its model.
        arrays: prepared images (C, H, W), to choose on where the store's engine is not here.
    """
    folder = store.path / ENGINE
    engine = model.engine.settle(batches_of(arrays), store.stamp["layers"], folder=folder if folder.is_dir() else None)
    made, here = ({**one, "version": ""} for one in (store.stamp["engine"], engine.description))
    if made != here:
        logger.warning(
            "%s was made by %s, and pictures are encoded by %s: similarities may differ in the last digits",
            store.path,
            _words(made),
            _words(here),
        )
    return engine


def identity_of(made: Model | FeatureStore) -> dict[str, str]:
    """Return name and sha256 of a model, or of the one that made a store."""
    if isinstance(made, FeatureStore):
        return {name: str(made.stamp["model"][name]) for name in ("name", "sha256")}
    return {"name": made.card.name, "sha256": made.identity}


def described(model: dict[str, Any]) -> str:
    """Return the name of a model and the start of its hash, for messages."""
    return f"{model['name']} (sha256 {str(model['sha256'])[:12]})"


def _load_options(store: FeatureStore, *, foreign: bool) -> dict[str, Any]:
    """Return the arguments of `load` that give the engine of a store, or fp32 PyTorch where it is not to be had."""
    made = store.stamp["engine"]
    options: dict[str, Any] = {"precision": made["precision"], "device": made["device"]}
    if made["name"] == "openvino":  # its precision, and the numbers of int8, lie in the store
        options = {"engine": "openvino", "fast": made["precision"] == "int8", "device": "cpu"}
    elif not foreign:
        options["engine"] = "torch"
    try:
        check_options(**options)
    except FovealError as error:
        logger.warning("the engine of %s, %s, cannot be used here: %s", store.path, _words(made), error)
        return {} if foreign else {"engine": "torch"}
    return options


def _words(engine: dict[str, str]) -> str:
    return f"{engine['name']} {engine['precision']} on {engine['device']}"
