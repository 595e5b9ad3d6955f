"""Connected components of a graph whose edges come in blocks and are never held together.

Shapes: N nodes, E edges of a block.
"""

import numpy as np


class UnionFind:
    """Which of N nodes are joined by the edges given so far; 8 bytes a node.

    Each tree hangs below its smallest node, so the answer does not depend on the order of the edges.

    Example:
        >>> joined = UnionFind(5)
        >>> joined.union(np.array([4, 1]), np.array([2, 4]))
        >>> joined.labels()
        array([0, 1, 1, 3, 1])
    """

    def __init__(self, num_nodes: int) -> None:
        self._parents = np.arange(num_nodes, dtype=np.int64)

    def union(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join the ends of edges: (E,) and (E,) integers from 0 to N - 1."""
        left, right = self._roots(np.asarray(left, np.int64)), self._roots(np.asarray(right, np.int64))
        while (apart := left != right).any():
            low, high = np.minimum(left[apart], right[apart]), np.maximum(left[apart], right[apart])
            np.minimum.at(self._parents, high, low)
            self._shorten(np.unique(high))
            left, right = self._roots(low), self._roots(high)

    def labels(self) -> np.ndarray:
        """Return (N,) int64: the smallest node of the component of each."""
        self._shorten(np.arange(len(self._parents)))
        return self._parents.copy()

    def _roots(self, nodes: np.ndarray) -> np.ndarray:
        roots = self._parents[nodes]
        while ((higher := self._parents[roots]) != roots).any():
            roots = higher
        self._parents[nodes] = roots  # the next search from here is one step
        return roots

    def _shorten(self, nodes: np.ndarray) -> None:
        """Hang nodes below roots, each step twice as far up: frames that each resemble the next are one long chain."""
        while ((higher := self._parents[self._parents[nodes]]) != self._parents[nodes]).any():
            self._parents[nodes] = higher
