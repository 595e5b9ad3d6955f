"""Whether a run is well: what is measured on a few fixed images as it goes on, and the signs of collapse.

Shapes: N images, D width, K prototypes.
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from foveal.backbone.card import Card
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.features.neighbours import knn_vote, top_k
from foveal.features.pca import patch_colours
from foveal.features.pictures import displayed, enlarged, picture_grid
from foveal.features.seen import see
from foveal.features.spread import neighbour_distance, rank_me
from foveal.images.imageset import ImageSet
from foveal.objectives.logits import Logits
from foveal.objectives.sinkhorn import sinkhorn_knopp, softmax_center
from foveal.pretrain.data.sampler import batch_indices
from foveal.pretrain.learner import Learner
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.start.lora import merged

_SEED = 20  # of the choice of images: the same in every run
_MOST = 1000  # images of a set of its own
_PICTURES = 6
_CELL = 112  # pixels
_K = 10  # neighbours that vote among the images themselves

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What `HealthProbe.measure` found: numbers by name, some of the images, and their patches below one another."""

    numbers: dict[str, float]
    photographs: Image.Image
    patches: Image.Image


class HealthProbe:
    """Measures the result of a run on fixed images: a sample of those trained on, or a set kept apart.

    Args:
        recipe: with its section `health`.
        images: those trained on.
        device: where the networks are.

    Raises:
        ImageSetError: the set of its own cannot be opened.
    """

    def __init__(self, recipe: Recipe, images: ImageSet, *, device: torch.device) -> None:
        assert recipe.health is not None
        self.recipe, self.device = recipe, device
        wanted = recipe.health.images
        self.kept_apart = isinstance(wanted, str)
        source = ImageSet.open(wanted) if isinstance(wanted, str) else images
        count = min(len(source), _MOST if isinstance(wanted, str) else wanted)
        _, numbers = batch_indices(0, batch_size=count, num_images=len(source), seed=_SEED)
        self.images = source.subset(sorted(numbers))

    def measure(self, learner: Learner, backbone: VisionTransformer, card: Card, *, temperature: float) -> Measured:
        """Measure the result, and draw the patches of some images in the colours of their principal components.

        | name | what |
        |---|---|
        | rank_me | effective rank of the class tokens, see `foveal.features.spread` |
        | neighbour_distance | mean distance of a class token to the nearest other one |
        | target_entropy | mean entropy of the images' targets, nats; at most log K |
        | mean_target_entropy | entropy of the mean of the targets, nats |
        | drift | length of (student - result) over that of the result, all backbone parameters |
        | knn_sample | where the images have labels: kNN (k=10) of each by the others, % |
        | seconds | that all this took |

        The difference of the two entropies is the information, in nats, that a target has about its image. It is 0 both
        where all targets are uniform and where all are the same prototype.

        Args:
            learner: of the run.
            backbone: that of the learner's result; or a copy, where that lies in shards, and then neither entropies nor
                drift are measured.
            card: of the result.
            temperature: of the teacher in this step.

        Raises:
            FovealError: features are not finite.
        """
        started = time.perf_counter()
        model = Model(TorchEngine(backbone, device=self.device), card)
        found = model.extract_set(self.images, batch_size=64)
        features = found.arrays["cls"]
        numbers = {"rank_me": rank_me(features)}
        if len(features) > 1:
            numbers["neighbour_distance"] = neighbour_distance(features)
        if backbone is learner.result.backbone:
            numbers |= self._entropies(learner, features, temperature)
            numbers["drift"] = drift(merged(learner.student.get_submodule("backbone")), backbone)
        labels = self.images.labels
        if labels is not None:
            numbers |= sample_knn(features, [labels[index] for index in found.indices.tolist()])
        seen = [
            see(model, self.images.decode(int(n), channels=card.backbone.channels), fit="crop")
            for n in found.indices[:_PICTURES]
        ]
        colours = patch_colours([one.patches for one in seen], keep_foreground=False)
        rows = [[displayed(one.pixels) for one in seen], [enlarged(colour, _CELL) for colour in colours]]
        photographs, patches = (picture_grid([row], cell_size=_CELL) for row in rows)
        return Measured(numbers | {"seconds": time.perf_counter() - started}, photographs, patches)

    @torch.no_grad()
    def _entropies(self, learner: Learner, features: Tensor, temperature: float) -> dict[str, float]:
        head = getattr(learner.result, "dino_head", None)
        if head is None:
            return {}
        logits = [Logits(head(features.to(self.device)), head.prototypes())]
        centers = getattr(learner, "centers", None)
        if self.recipe.objective.centering == "sinkhorn_knopp" or centers is None:
            (targets,) = sinkhorn_knopp(logits, temperature=temperature)
        else:
            (targets,) = softmax_center(logits, center=centers.dino, temperature=temperature)
        entropy, mean_entropy = entropies(targets(slice(0, len(features))))
        return {"target_entropy": entropy, "mean_target_entropy": mean_entropy}


def entropies(targets: Tensor) -> tuple[float, float]:
    """Return the mean entropy of targets (N, K) and the entropy of their mean, in nats.

    Example:
        >>> entropies(torch.eye(4))  # each certain, together uniform
        (0.0, 1.3862943611198906)
    """
    targets = targets.double()
    each = torch.special.entr(targets).sum(dim=1)
    return float(each.mean()), float(torch.special.entr(targets.mean(dim=0)).sum())


@torch.no_grad()
def drift(student: torch.nn.Module, result: torch.nn.Module) -> float:
    """Return |student - result| / |result| over all parameters of two equal networks."""
    apart = length = 0.0
    for ours, theirs in zip(student.parameters(), result.parameters(), strict=True):
        apart += float((ours - theirs).square().sum())
        length += float(theirs.square().sum())
    return math.sqrt(apart / length) if length else 0.0


def sample_knn(features: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Classify each image by its nearest others; {} where a class has fewer than 5 images on average."""
    names = sorted(set(labels))
    if len(names) < 2 or len(labels) < 5 * len(names):
        return {}
    numbers = torch.tensor([names.index(label) for label in labels])
    k = min(_K, len(labels) - 1)
    similarities, neighbours = top_k(features, features, k=k + 1)
    # Each finds itself, and not first where it has a twin: it goes to the end.
    order = (neighbours == torch.arange(len(labels))[:, None]).int().argsort(dim=1, stable=True)[:, :k]
    scores = knn_vote(
        similarities.gather(1, order), numbers[neighbours.gather(1, order)], num_classes=len(names), ks=[k]
    )[k]
    return {"knn_sample": 100 * float((scores.argmax(dim=1) == numbers).double().mean())}
