"""The projection head of DINO and iBOT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.objectives.logits import wide


class DINOHead(nn.Module):
    """Three-layer MLP to a bottleneck, L2 normalisation, then weight-normed prototypes (arXiv 2104.14294, section 3).

    The head returns the normalised bottleneck; logits are its products with `prototypes()`, and the loss forms them in
    chunks, because with 65,536 prototypes they are the largest tensor of the step. State-dict keys are the official
    ones: mlp.{0,2,4}, last_layer.{weight_g, weight_v}. As upstream, weight_g starts at 1 and is trained.

    Args:
        width: D of the backbone.
        hidden: width of the two hidden layers.
        bottleneck: width before the prototypes.
        num_prototypes: K.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = nn.ParameterDict(
            {"weight_g": torch.ones(num_prototypes, 1), "weight_v": torch.zeros(num_prototypes, bottleneck)}
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> "DINOHead":
        """Draw initial weights: truncated normal, std 0.02, for the MLP; uniform, PyTorch's default, for prototypes."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        direction = self.last_layer["weight_v"]
        bound = direction.shape[1] ** -0.5
        direction.uniform_(-bound, bound, generator=generator)
        nn.init.ones_(self.last_layer["weight_g"])
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, D) to unit vectors (N, bottleneck), normalised in fp32 or wider."""
        bottleneck = self.mlp(tokens)
        return F.normalize(bottleneck.to(wide(bottleneck.dtype)), dim=-1, eps=1e-12)

    def prototypes(self) -> Tensor:
        """Return the prototypes (K, bottleneck): g v / |v| for each row."""
        direction = self.last_layer["weight_v"]
        return direction * (self.last_layer["weight_g"] / direction.norm(dim=1, keepdim=True))
