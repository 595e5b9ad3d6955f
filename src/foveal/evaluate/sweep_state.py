"""What an interrupted sweep of C goes on from: the last fit, the best one, and how good that is."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.evaluate.softmax_regression import Fit
from foveal.tasks.saved_state import load_state, save_state


class Sweep(NamedTuple):
    """How far a sweep has come.

    Attributes:
        num_done: values of C.
        last: the fit of the last of them; None before the first.
        best: the fit of the highest accuracy.
        accuracy: of `best`, in percent.
    """

    num_done: int = 0
    last: Fit | None = None
    best: Fit | None = None
    accuracy: float = -1.0


class SweepFile:
    """The file of one sweep.

    Args:
        path: of the file.
        features: (N, D) that are fitted, and those that judge.
        labels: (N,) of them.
        cs: to be fitted, ascending.
    """

    def __init__(self, path: Path, features: Tensor, labels: Tensor, cs: list[float]) -> None:
        self._path = path
        digest = sha256(repr((cs, tuple(features.shape))).encode())
        for values in (features, labels):
            digest.update(values.cpu().contiguous().numpy().data)
        self._stamp = digest.hexdigest()

    def load(self) -> Sweep:
        """Return how far the sweep has come.

        Raises:
            FovealError: the file belongs to another sweep.
        """
        saved = load_state(self._path, stamp=self._stamp, work="sweep")
        if saved is None:
            return Sweep()

        tensors, words = saved

        def fit(name: str) -> Fit:
            return Fit(
                c=float(words[f"{name}_c"]),
                weight=tensors[f"{name}.weight"],
                bias=tensors[f"{name}.bias"],
                classes=tensors[f"{name}.classes"],
                objective=float(words[f"{name}_objective"]),
                steps=int(words[f"{name}_steps"]),
            )

        return Sweep(int(words["step"]), fit("last"), fit("best"), float(words["accuracy"]))

    def save(self, sweep: Sweep) -> None:
        """Write how far the sweep has come."""
        tensors: dict[str, Tensor] = {}
        words: dict[str, object] = {"step": sweep.num_done, "accuracy": sweep.accuracy}
        for name, fit in (("last", sweep.last), ("best", sweep.best)):
            if fit is not None:
                parts = {"weight": fit.weight, "bias": fit.bias, "classes": fit.classes}
                tensors |= {f"{name}.{part}": torch.clone(values) for part, values in parts.items()}
                words |= {f"{name}_{part}": getattr(fit, part) for part in ("c", "objective", "steps")}
        save_state(self._path, tensors, stamp=self._stamp, **words)
