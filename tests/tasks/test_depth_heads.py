from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foveal.errors import FovealError
from foveal.tasks.dense import Level, quarter_layers
from foveal.tasks.depth import DptDepth, LinearDepth, gradient_loss, sig_loss


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "depth_heads.safetensors")


def levels_of(reference: dict[str, Tensor]) -> list[Level]:
    return [Level(reference[f"features.{i}.patches"], reference[f"features.{i}.cls"]) for i in range(4)]


def weights_of(reference: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}.weights."
    return {key.removeprefix(prefix): value for key, value in reference.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("name", "first"), [("linear1", 3), ("linear4", 0)])
def test_linear_heads_equal_the_reference(reference: dict[str, Tensor], name: str, first: int) -> None:
    head = LinearDepth(48, num_levels=4 - first, min_depth=0.001, max_depth=10)
    head.load_state_dict(weights_of(reference, name))
    found = head(levels_of(reference)[first:])
    assert found.shape == reference[f"{name}.output"].shape
    assert (found - reference[f"{name}.output"]).abs().max() <= 1e-4


def test_linear_depth_and_its_gradient_are_those_of_the_plain_formula() -> None:
    torch.manual_seed(0)
    head = LinearDepth(5, num_levels=2, min_depth=0.5, max_depth=7, num_bins=11).double()
    levels = [Level(torch.randn(2, 5, 3, 7).double(), torch.randn(2, 5).double()) for _ in range(2)]
    maps = [part for one in levels for part in (one.patches, one.cls[:, :, None, None].expand(-1, -1, 3, 7))]
    weights = head.conv_depth(torch.cat(maps, dim=1))
    weights = torch.nn.functional.interpolate(weights, scale_factor=4, mode="bilinear").relu() + 0.1
    centres = torch.linspace(0.5, 7, 11, dtype=torch.float64)[:, None, None]
    wanted = (weights / weights.sum(dim=1, keepdim=True) * centres).sum(dim=1, keepdim=True)
    torch.testing.assert_close(head(levels), wanted, rtol=1e-12, atol=1e-12)
    parameters = list(head.parameters())
    ours = torch.autograd.grad(head(levels).square().sum(), parameters)
    theirs = torch.autograd.grad(wanted.square().sum(), parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_dpt_equals_the_reference(reference: dict[str, Tensor]) -> None:
    head = DptDepth(48, fusion_width=32, min_depth=0.001, max_depth=10)
    head.load_state_dict(weights_of(reference, "dpt"))
    found = head(levels_of(reference))
    assert found.shape == reference["dpt.output"].shape
    assert (found - reference["dpt.output"]).abs().max() <= 1e-4


def test_sig_loss_is_the_formula_on_the_known_pixels() -> None:
    predicted = torch.tensor([1.0, 2.0, 4.0, 9.0]).view(1, 1, 2, 2)
    target = torch.tensor([2.0, 2.0, 0.0, 20.0]).view(1, 1, 2, 2)  # one not known, one beyond the range
    g = np.log([1.001, 2.001]) - np.log([2.001, 2.001])
    wanted = np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    assert float(sig_loss(predicted, target, max_depth=10)) == pytest.approx(wanted, rel=1e-5)
    warm = np.sqrt(0.15 * g.mean() ** 2)
    assert float(sig_loss(predicted, target, max_depth=10, warm_up=True)) == pytest.approx(warm, rel=1e-5)


def test_losses_of_a_batch_without_depth_are_zero_with_a_gradient() -> None:
    predicted = torch.ones(1, 1, 3, 5, requires_grad=True)
    loss = sig_loss(predicted, torch.zeros(1, 1, 3, 5), max_depth=10) + gradient_loss(
        predicted, torch.zeros(1, 1, 3, 5), max_depth=10
    )
    loss.backward()
    assert predicted.grad is not None
    assert (loss.item(), predicted.grad.abs().sum().item()) == (0, 0)


def test_gradient_loss_counts_differences_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand(2, 1, 13, 9, generator=generator) * 5 + 0.5 for _ in range(2))
    target[torch.rand(target.shape, generator=generator) < 0.3] = 0
    wanted = 0.0
    for step in (1, 2, 4, 6):
        p, t = predicted[..., ::step, ::step].numpy(), target[..., ::step, ::step].numpy()
        total = 0.0
        for b, _, y, x in np.ndindex(p.shape):
            for dy, dx in ((2, 0), (0, 2)):
                if y + dy < p.shape[2] and x + dx < p.shape[3] and t[b, 0, y, x] > 0 and t[b, 0, y + dy, x + dx] > 0:
                    errors = [np.log(v[b, 0, i, j] + 1e-3) for i, j in ((y, x), (y + dy, x + dx)) for v in (p, t)]
                    total += abs((errors[0] - errors[1]) - (errors[2] - errors[3]))
        wanted += total / (t > 0).sum()
    assert float(gradient_loss(predicted, target, max_depth=10)) == pytest.approx(wanted, rel=1e-4)


def test_levels_and_ranges_that_do_not_exist_are_refused() -> None:
    assert quarter_layers(40) == (9, 19, 29, 39)
    with pytest.raises(FovealError, match="a network of 3; choose a head of the last block"):
        quarter_layers(3)
    with pytest.raises(FovealError, match="depths from 10 to 1"):
        LinearDepth(8, num_levels=1, min_depth=10, max_depth=1)
    with pytest.raises(FovealError, match="sigmoid with a max_depth"):
        DptDepth(8, output="sigmoid")
