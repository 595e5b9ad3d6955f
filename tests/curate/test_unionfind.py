import numpy as np
import pytest

from foveal.curate.unionfind import UnionFind


def walked(num_nodes: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    """Label components by walking the graph node by node."""
    near: list[set[int]] = [set() for _ in range(num_nodes)]
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        near[a].add(b)
        near[b].add(a)
    labels = [-1] * num_nodes
    for start in range(num_nodes):
        todo = [start] if labels[start] < 0 else []
        while todo:
            node = todo.pop()
            if labels[node] < 0:
                labels[node] = start
                todo.extend(near[node])
    return labels


@pytest.mark.parametrize("num_edges", [0, 20, 60, 300])
def test_components_are_those_of_a_walk_in_any_order_of_the_edges(num_edges: int) -> None:
    generator = np.random.default_rng(num_edges)
    left, right = generator.integers(0, 97, (2, num_edges))
    for order in (np.arange(num_edges), generator.permutation(num_edges)):
        joined = UnionFind(97)
        for block in np.array_split(order, 3):
            joined.union(left[block], right[block])
        assert joined.labels().tolist() == walked(97, left, right)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("step", [1, -1])
def test_a_long_chain_is_one_component(step: int) -> None:
    joined = UnionFind(300_000)  # minutes, where each link is walked
    joined.union(np.arange(1, 300_000)[::step], np.arange(299_999)[::step])
    assert not joined.labels().any()
