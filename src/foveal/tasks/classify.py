"""Classification from frozen features: a linear layer, an MLP, or an attentive probe; and what predicts with them.

Shapes: B images, L blocks that are read, D width, P patches, K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.errors import FovealError
from foveal.images.preprocess import ImageLike
from foveal.tasks.dense import batch_of, finite

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.tasks.head import Head


class Tokens(NamedTuple):
    """What a classifier reads, after the final norm.

    Attributes:
        cls: (B, L, D), the class tokens of the blocks, in ascending order.
        patches: (B, P, D), of the last of them; for heads that read their mean alone, P may be 1: that mean.
    """

    cls: Tensor
    patches: Tensor


class Label(NamedTuple):
    """The most probable class of a picture."""

    name: str
    probability: float


class LinearClassifier(nn.Linear):
    """A linear layer on the class tokens of the last blocks and the mean patch token of the last.

    State-dict keys and the order of the inputs are those of the official heads, which read one block or four.

    Args:
        width: D.
        num_levels: L.
        num_classes: K.

    Source: arXiv 2304.07193, section 7.1 and appendix B.3.
    """

    def __init__(self, width: int, *, num_levels: int, num_classes: int) -> None:
        super().__init__((num_levels + 1) * width, num_classes)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: Tokens) -> Tensor:  # type: ignore[override]
        """Return logits (B, K)."""
        return super().forward(joined(tokens))


class MlpClassifier(nn.Module):
    """Batch norm and two linear layers with GELU between, on class token and mean patch token of the last block.

    Args:
        width: D; the layer between has twice as many.
        num_classes: K.
    """

    def __init__(self, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * width)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return logits (B, K)."""
        return self.linear(F.gelu(self.hidden(self.norm(joined(tokens)))))


class AttentiveClassifier(nn.Module):
    """One learned query attends to the class and patch tokens of the last block; a linear layer reads what it gathers.

    Layer norm stands before the keys and values, and before the linear layer.

    Args:
        width: D.
        num_heads: of the attention; divides D.
        num_classes: K.

    Source: the attentive probe of arXiv 2404.08471 (V-JEPA), section 4, without its feed-forward layer.
    """

    def __init__(self, width: int, *, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.gathered_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return logits (B, K)."""
        seen = self.norm(torch.cat([tokens.cls[:, -1:], tokens.patches], dim=1))
        query = self.query.expand(seen.shape[0], -1, -1)
        gathered, _ = self.attention(query, seen, seen, need_weights=False)
        return self.linear(self.gathered_norm(gathered[:, 0]))


def joined(tokens: Tokens) -> Tensor:
    """Return (B, (L + 1) D): the class tokens, then the mean patch token."""
    return torch.cat([tokens.cls.flatten(1), tokens.patches.mean(dim=1)], dim=1)


def read_tokens(model: "Model", images: Tensor, layers: Sequence[int]) -> Tokens:
    """Run prepared pictures (B, C, H, W) of one size and return what classifiers read, on the CPU."""
    found = model.engine.intermediate(images, sorted(layers))
    # Cloned: tensors made in inference mode cannot take part in training a head.
    cls = torch.stack([one.cls.clone() for one in found], dim=1)
    return Tokens(cls.cpu(), found[-1].patches.clone().cpu())


class ClassPredictor:
    """A model with a classification head. Pictures of any size are resized and cut as the model's card says.

    Args:
        model: the backbone with its preprocessing.
        head: fitted on it.

    Raises:
        WeightsError: the head belongs to another backbone.

    Example:
        >>> model = foveal.load("model").with_head(load_head("head"))  # doctest: +SKIP
        >>> model.predict("cat.jpg")  # doctest: +SKIP
        Label(name='cat', probability=0.93)
    """

    def __init__(self, model: "Model", head: "Head") -> None:
        from foveal.tasks.head import check_backbone

        check_backbone(head.card, model)
        self.model, self.head = model, head
        self._preprocess = model.preprocessing()

    @property
    def classes(self) -> list[str]:
        """Names by number; "class 0" and so on where the head has none."""
        number = self.head.card.settings["num_classes"]
        return self.head.card.classes or [f"class {i}" for i in range(number)]

    def predict(self, image: ImageLike) -> Label:
        """Return the most probable class of a picture: a path, a Pillow image or an array."""
        (probabilities,) = self.probabilities([image])
        best = int(probabilities.argmax())
        return Label(self.classes[best], float(probabilities[best]))

    def probabilities(self, images: Sequence[ImageLike]) -> np.ndarray:
        """Return the probability of each class (B, K) float32 for some pictures, which are run together."""
        if not images:
            raise FovealError("no picture; give at least one")
        return self.of_arrays([self._preprocess(image) for image in images]).numpy()

    def of_arrays(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """Return the probabilities (B, K) of pictures that are prepared already."""
        return self.logits(arrays).softmax(dim=1)

    @torch.no_grad()
    def logits(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """Return the logits (B, K) of pictures that are prepared already."""
        tokens = read_tokens(self.model, batch_of(arrays), self.head.card.layers)
        return finite(self.head.network(tokens), head=self.head.card.name)
