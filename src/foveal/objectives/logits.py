"""Logits chunk by chunk: with 65,536 prototypes and more they are the largest tensor of a step."""

from collections.abc import Callable

import torch
from torch import Tensor

# Logits of one chunk: 32 MB of fp32, so that the passes over them stay near the processor.
CHUNK_ELEMENTS = 8 * 1024 * 1024

# A chunk of the rows of a micro-batch, as `row_chunks` has them -> their targets (rows, K), float32 or wider.
Targets = Callable[[slice], Tensor]


def row_chunks(num_rows: int, num_prototypes: int) -> list[slice]:
    """Return consecutive rows in chunks of at most CHUNK_ELEMENTS logits, or of one row.

    Example:
        >>> row_chunks(5, 3 * 1024 * 1024)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    chunk = max(1, CHUNK_ELEMENTS // num_prototypes)
    return [slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums and exponentials of values of `dtype`: float32, or `dtype` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(features: Tensor) -> torch.dtype:
    """Return the type in which features and prototypes are multiplied: autocast's, where that is on."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide(features.dtype)


class Logits:
    """The logits of some rows: products of their bottleneck vectors and the prototypes, formed when asked for.

    Args:
        features: (N, d).
        prototypes: (K, d), in the type in which the products are to be formed.
    """

    def __init__(self, features: Tensor, prototypes: Tensor) -> None:
        self.features, self.prototypes = features, prototypes

    def __len__(self) -> int:
        """Return N."""
        return len(self.features)

    def chunks(self) -> list[slice]:
        """Return all rows, a chunk each."""
        return row_chunks(len(self), len(self.prototypes))

    def __call__(self, rows: slice) -> Tensor:
        """Return the logits (rows, K) in a new tensor, float32 or wider."""
        with torch.autocast(self.features.device.type, enabled=False):
            return (self.features[rows].to(self.prototypes.dtype) @ self.prototypes.T).to(wide(self.features.dtype))

    def sum(self) -> Tensor:
        """Return the sum of all rows' logits (K,): the product of the prototypes and the sum of the features."""
        with torch.autocast(self.features.device.type, enabled=False):
            total = self.features.to(wide(self.features.dtype)).sum(0)
            return self.prototypes.to(total.dtype) @ total
