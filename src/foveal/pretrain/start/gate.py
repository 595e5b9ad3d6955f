"""The gate of a run that starts from other weights: its features may not become worse than those it began with."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.card import Card
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import RecipeError, RunError
from foveal.features.extract import Model
from foveal.features.neighbours import top_k
from foveal.features.spread import rank_me
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet
from foveal.pretrain.probe import KNNProbe
from foveal.pretrain.start.settings import Gate as GateSettings


@dataclass(frozen=True)
class Judgement:
    """What the gate found after `step` steps.

    Attributes:
        step: finished steps; 0 is the start.
        scores: "agreement", "rank" (RankMe) and, with labels, "knn" in percent.
        failed: what fell beyond its limit, in words; empty where the features pass.
    """

    step: int
    scores: dict[str, float]
    failed: str = ""


class Gate:
    """Compares features with those of the start, by labels where there are some, else without.

    Without labels two numbers are held: `agreement`, the mean share of an image's k nearest neighbours that are also
    its neighbours by the start's features, and the effective rank (RankMe, arXiv 2210.02885) beside the start's.
    Agreement alone would pass features that shrink onto few directions and keep the nearest images; rank alone would
    pass features that are spread out and mean nothing. Neither has to stay what it was, since the images at hand are
    what is learned; a sharp fall is what a run looks like that forgets. With labels the accuracy of kNN is held
    instead, and the two are only measured.

    Args:
        settings: limits, and on which images.
        images: of the run; up to `settings.num_images` of them, evenly chosen, where settings name no others.
        backbone: as the run begins, before a checkpoint is restored.
        card: of that.
        probe: kNN on labelled images, or None.
        path: the file of the judgements; those of an earlier process are taken over.
        device: of the networks.

    Raises:
        RecipeError: fewer images than neighbours; or kNN was there at the start and is not now, or the other way round.
        RunError: the file is damaged.
    """

    def __init__(
        self,
        settings: GateSettings,
        *,
        images: ImageSet,
        backbone: VisionTransformer,
        card: Card,
        probe: KNNProbe | None,
        path: Path,
        device: torch.device,
    ) -> None:
        self.settings, self._probe, self._path, self._device = settings, probe, path, device
        found = ImageSet.open(settings.images) if settings.images else images
        count = min(len(found), settings.num_images)
        self._images = found.subset(np.linspace(0, len(found) - 1, count).round().astype(np.int64))
        if count <= settings.num_neighbours:
            raise RecipeError(
                f"gate.num_neighbours={settings.num_neighbours} of {count} images; give more images or fewer neighbours"
            )
        self.judgements = self._read()
        if self.judgements and ("knn" in self.judgements[0].scores) != (probe is not None):
            raise RecipeError(
                f"the gate of {path.parent} began {'without' if probe else 'with'} knn, by which it judges; "
                f"{'leave knn out' if probe else 'give knn again'}, or choose another out="
            )
        start = self._features(backbone, card)
        self._neighbours = self._nearest(start)
        if not self.judgements:
            self._add(Judgement(0, self._scores(backbone, card, start)))

    @property
    def passed(self) -> int:
        """Step of the newest features that passed."""
        return max(found.step for found in self.judgements if not found.failed)

    def has_passed(self, step: int) -> bool:
        """Return whether the features after `step` steps were judged, and passed."""
        return any(found.step == step and not found.failed for found in self.judgements)

    @property
    def failed(self) -> Judgement | None:
        """The judgement that ended the run, if one did."""
        return next((found for found in self.judgements if found.failed), None)

    def forget_after(self, step: int) -> None:
        """Drop judgements of steps that will be run again, unless one of them ended the run."""
        if self.failed is None:
            self.judgements = [found for found in self.judgements if found.step <= step]

    def judge(self, backbone: VisionTransformer, card: Card, *, step: int) -> Judgement:
        """Measure the features after `step` steps, write it down, and tell whether they pass."""
        scores = self._scores(backbone, card, self._features(backbone, card))
        return self._add(Judgement(step, scores, self._fault(scores)))

    def lineage(self) -> list[dict[str, object]]:
        """Return the judgements as plain values, for a card."""
        return [asdict(found) for found in self.judgements]

    def _fault(self, scores: dict[str, float]) -> str:
        limits, start = self.settings, self.judgements[0].scores
        if self._probe is not None:
            least = start["knn"] - limits.max_knn_drop
            return f"kNN fell from {start['knn']:.1f} to {scores['knn']:.1f} %" if scores["knn"] < least else ""
        if scores["agreement"] < limits.min_agreement:
            return f"only {scores['agreement']:.0%} of nearest neighbours are those of the start"
        if scores["rank"] < limits.min_rank_share * start["rank"]:
            return f"the effective rank fell from {start['rank']:.1f} to {scores['rank']:.1f}"
        return ""

    def _scores(self, backbone: VisionTransformer, card: Card, features: Tensor) -> dict[str, float]:
        nearest = self._nearest(features)
        shared = (nearest[:, :, None] == self._neighbours[:, None, :]).any(dim=2)
        scores = {"agreement": shared.double().mean().item(), "rank": rank_me(features)}
        return scores | (self._probe(backbone, card) if self._probe else {})

    def _features(self, backbone: VisionTransformer, card: Card) -> Tensor:
        model = Model(TorchEngine(backbone, device=self._device), card)
        return model.extract_set(self._images, batch_size=64).arrays["cls"]

    def _nearest(self, features: Tensor) -> Tensor:
        """Return (N, k), the nearest other images of each."""
        k = self.settings.num_neighbours
        _, found = top_k(features, features, k=k + 1)
        # An image is its own nearest; where another is as near, the image itself may be listed later, or not at all.
        others = found != torch.arange(len(found))[:, None]
        last = others.all(dim=1)
        others[last, -1] = False
        return found[others].view(len(found), k)

    def _add(self, judgement: Judgement) -> Judgement:
        self.judgements.append(judgement)
        try:
            write_atomically(self._path, json.dumps(self.lineage(), indent=1) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error}; make room and run the same command again") from error
        return judgement

    def _read(self) -> list[Judgement]:
        if not self._path.is_file():
            return []
        try:
            return [Judgement(**entry) for entry in json.loads(self._path.read_text())]
        except (ValueError, TypeError) as error:
            raise RunError(f"{self._path} is damaged ({error}); restore it or choose another out=") from error
