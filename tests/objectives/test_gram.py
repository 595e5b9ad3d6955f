import pytest
import torch
import torch.nn.functional as F

from foveal.objectives.gram import gram_loss


def test_by_hand() -> None:
    """Two patches at a right angle against two at 60 degrees: the two off-diagonal entries differ by 1/2."""
    patches = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    anchors = torch.tensor([[[1.0, 0.0], [0.5, 3**0.5 / 2]]])
    assert gram_loss(patches, anchors).item() == pytest.approx(2 * 0.25 / 4)


def test_images_are_apart_and_widths_may_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, anchors = torch.randn(3, 5, 7, generator=generator), torch.randn(3, 5, 4, generator=generator)
    total = 0.0
    for x, y in zip(patches.double(), anchors.double(), strict=True):
        for i in range(5):
            for j in range(5):
                seen = F.cosine_similarity(x[i], x[j], dim=0) - F.cosine_similarity(y[i], y[j], dim=0)
                total += float(seen) ** 2
    assert gram_loss(patches, anchors).item() == pytest.approx(total / (3 * 25), rel=1e-5)


def test_a_rotation_costs_nothing_and_anchors_get_no_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(2, 5, 3, generator=generator, requires_grad=True)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    anchors = (patches.detach() @ rotation).requires_grad_()
    loss = gram_loss(patches, anchors)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert anchors.grad is None
    assert patches.grad is not None


def test_zero_patches_are_finite() -> None:
    patches = torch.zeros(1, 2, 3, requires_grad=True)
    loss = gram_loss(patches, torch.ones(1, 2, 3))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert patches.grad is not None
    assert torch.isfinite(patches.grad).all()


def test_is_fp32_inside_bf16_autocast() -> None:
    generator = torch.Generator().manual_seed(2)
    patches, anchors = (torch.randn(2, 5, 3, generator=generator) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = gram_loss(patches, anchors)
    assert loss.dtype == torch.float32
    assert loss.item() == gram_loss(patches, anchors).item()
