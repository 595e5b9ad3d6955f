"""kNN during training: the one number that says whether the features improve."""

import torch
from torch import Tensor

from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import RecipeError
from foveal.features.extract import Model
from foveal.features.labels import number_labels
from foveal.features.neighbours import knn_accuracy
from foveal.images.imageset import ImageSet
from foveal.pretrain.recipe import KNN


class KNNProbe:
    """kNN accuracy of a backbone on a labelled held-out set, by the published protocol with one k.

    Raises:
        RecipeError: k is larger than the train set.
        ImageSetError: a set without labels, or test labels that train lacks.
    """

    def __init__(self, settings: KNN, *, device: torch.device) -> None:
        self.every_steps = settings.every_steps
        self._k, self._device = settings.k, device
        self._train, self._test = ImageSet.open(settings.train), ImageSet.open(settings.test)
        self._train_labels, self._test_labels, _ = number_labels(self._train, self._test)
        if self._k > len(self._train):
            raise RecipeError(f"knn.k={self._k} is above the {len(self._train)} images of knn.train; use a smaller k")

    def __call__(self, backbone: VisionTransformer, card: Card) -> dict[str, float]:
        """Return {"knn": top-1 accuracy in percent}."""
        model = Model(TorchEngine(backbone, device=self._device), card)
        train, train_labels = _features(model, self._train, self._train_labels)
        test, test_labels = _features(model, self._test, self._test_labels)
        accuracy = knn_accuracy(train, train_labels, test, test_labels, ks=[self._k])
        return {"knn": 100 * accuracy[self._k].top1}


def _features(model: Model, images: ImageSet, labels: Tensor) -> tuple[Tensor, Tensor]:
    found = model.extract_set(images, batch_size=64)
    return found.arrays["cls"], labels[found.indices]
