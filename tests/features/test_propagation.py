import numpy as np
import pytest
import torch

from foveal.errors import FovealError
from foveal.features.propagation import propagate


def _random(grid: tuple[int, int], frames: int) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    contexts = [torch.randn(*grid, 5, generator=generator) for _ in range(frames)]
    masks = [torch.rand(3, *grid, generator=generator) for _ in range(frames)]
    return torch.randn(*grid, 5, generator=generator), contexts, masks


@pytest.mark.parametrize(("grid", "radius", "top_k"), [((7, 5), 2, 5), ((3, 8), 12, 4), ((2, 3), 0, 5)])
def test_masks_are_those_of_all_affinities_cut_down(grid: tuple[int, int], radius: int, top_k: int) -> None:
    """The published form: all affinities, those far away to 0, those below the k-th to 0, columns to sum 1."""
    target, contexts, masks = _random(grid, 2)
    found = propagate(target, contexts, masks, radius=radius, top_k=top_k)
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    near = (abs(rows[:, None] - rows) <= radius) & (abs(columns[:, None] - columns) <= radius)
    unit = lambda x: x.numpy().reshape(-1, 5) / np.linalg.norm(x.numpy().reshape(-1, 5), axis=1)[:, None]  # noqa: E731
    affinity = np.concatenate([np.exp(unit(context) @ unit(target).T / 0.1) * near for context in contexts])
    kept = affinity * (affinity >= np.sort(affinity, axis=0)[-top_k])
    values = np.concatenate([mask.numpy().reshape(3, -1) for mask in masks], axis=1)
    expected = values @ (kept / kept.sum(axis=0))
    np.testing.assert_allclose(found.numpy().reshape(3, -1), expected, atol=1e-5)


def test_a_frame_that_has_moved_takes_its_mask_along() -> None:
    frame = torch.randn(6, 9, 5, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    moved = propagate(frame.roll(2, dims=1), [frame], [mask], radius=2, top_k=1)
    assert torch.equal(moved[:, :, 2:], mask[:, :, :-2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"radius": -1}, "radius=-1"), ({"top_k": 0}, "top_k=0"), ({"temperature": 0.0}, "temperature=0")],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        propagate(*_random((2, 3), 1), **changes)  # type: ignore[arg-type]


def test_frames_of_another_size_are_refused() -> None:
    target, contexts, masks = _random((2, 3), 1)
    with pytest.raises(FovealError, match="for a frame of 3 x 2 patches"):
        propagate(target.transpose(0, 1), contexts, masks)
    with pytest.raises(FovealError, match="0 context frames"):
        propagate(target, [], [])
