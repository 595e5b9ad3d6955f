"""kNN during training: the one number that says whether the features improve."""

import torch

from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import ImageSetError
from foveal.features.extract import Model
from foveal.features.neighbours import knn_accuracy
from foveal.images.imageset import ImageSet
from foveal.pretrain.recipe import KNN


class KNNProbe:
    """kNN accuracy of a backbone on a labelled held-out set, by the published protocol with one k."""

    def __init__(self, settings: KNN, *, device: torch.device) -> None:
        self.every_steps = settings.every_steps
        self._k, self._device = settings.k, device
        self._train = _labelled(settings.train, settings.limit)
        self._test = _labelled(settings.test, settings.limit)

    def __call__(self, backbone: VisionTransformer, card: Card) -> dict[str, float]:
        """Return {"knn": top-1 in percent}."""
        model = Model(TorchEngine(backbone, device=self._device), card)
        raise NotImplementedError
