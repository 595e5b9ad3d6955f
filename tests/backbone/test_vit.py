from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foveal.backbone.layers import Block, Drop, Group, StochasticDepth
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import FovealError

Network = Callable[..., VisionTransformer]
GROUPS = [Group(5, 3), Group(2, 7)]


def _views(seed: int = 0) -> tuple[list[Tensor], list[Tensor | None]]:
    """Two groups of coprime sizes: 3 masked images of 2 x 3 patches and 5 unmasked ones of 1 x 2."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, 3, 28, 42, generator=generator), torch.randn(5, 3, 14, 28, generator=generator)]
    return images, [torch.rand(3, 6, generator=generator) < 0.5, None]


def _packed(network: VisionTransformer, images: list[Tensor], masks: list[Tensor | None]) -> Tensor:
    rows = []
    for batch, mask in zip(images, masks, strict=True):
        tokens = network(batch, mask)
        rows.append(torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1).flatten(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("num_registers", [0, 2])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@torch.no_grad()
def test_list_forward_equals_separate_forwards(random_network: Network, ffn: str, num_registers: int) -> None:
    network = random_network(ffn=ffn, num_registers=num_registers, image_size=70)
    images, masks = _views()
    expected = _packed(network, images, masks)
    rows = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))[:11]
    # float32 matrix products over other numbers of rows may sum in another order
    torch.testing.assert_close(network.forward_rows(images, masks, rows), expected[rows], atol=1e-5, rtol=0)
    everything = torch.arange(len(expected))
    torch.testing.assert_close(network.forward_rows(images, masks, everything), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_of_one_batch_do_not_see_each_other(random_network: Network) -> None:
    network = random_network(num_registers=2, image_size=70)
    images = torch.randn(3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    alone = network(images[1:2]).patches
    torch.testing.assert_close(network(images).patches[1:2], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_masked_pixels_do_not_matter_and_unmasked_do(random_network: Network) -> None:
    network = random_network(image_size=70)
    images = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[:, 4] = True  # second row, second column of the 2 x 3 grid
    changed = images.clone()
    changed[:, :, 14:, 14:28] += 1
    torch.testing.assert_close(network(changed, masks).cls, network(images, masks).cls, atol=1e-6, rtol=0)
    changed[:, :, :14, 14:28] += 1
    assert (network(changed, masks).cls - network(images, masks).cls).abs().max() > 1e-3


def test_a_number_of_layers_means_the_last_ones(random_network: Network) -> None:
    network = random_network(image_size=70)
    images = torch.randn(2, 3, 14, 28, generator=torch.Generator().manual_seed(0))
    last_two = network.intermediate(images, 2)
    by_number = network.intermediate(images, [2, 1])
    assert all(torch.equal(a.cls, b.cls) for a, b in zip(last_two, by_number, strict=True))
    assert torch.equal(last_two[-1].patches, network(images).patches)


@pytest.mark.parametrize("layers", [0, 4, [3], [-1], []])
def test_layers_that_do_not_exist_are_named(random_network: Network, layers: int | list[int]) -> None:
    with pytest.raises(FovealError, match=r"backbone with 3 blocks; choose among 0\.\.2"):
        random_network(image_size=70).intermediate(torch.zeros(1, 3, 14, 14), layers)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 225, 224), r"image height=225 is not a multiple of patch_size=14; use 224 or 238 \(resize or pad"),
        ((1, 3, 224, 13), r"image width=13 is not a multiple of patch_size=14; use 14 "),
        ((1, 3, 14, 0), r"image width=0 .* use 14 "),
        ((1, 1, 14, 14), "images have 1 channels; this backbone takes 3"),
    ],
)
def test_images_that_do_not_fit_are_explained(random_network: Network, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        random_network(image_size=70)(torch.zeros(shape))


def test_other_numbers_of_channels_work(random_network: Network) -> None:
    assert random_network(image_size=70, channels=5)(torch.zeros(2, 5, 14, 28)).patches.shape == (2, 2, 48)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def initial(seed: int) -> dict[str, Tensor]:
        network = VisionTransformer(backbone_config("vit_nano", num_registers=2, image_size=70))
        return network.init_weights(torch.Generator().manual_seed(seed)).state_dict()

    first, second, other = initial(3), initial(3), initial(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])
    assert first["blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not first["mask_token"].any()
    assert (first["blocks.2.ls2.gamma"] == 1e-5).all()


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
@pytest.mark.parametrize(("ffn", "num_registers"), [("mlp", 0), ("swiglu", 2)])
def test_gradients_reach_every_parameter(
    random_network: Network, ffn: str, num_registers: int, drop_path_rate: float
) -> None:
    network = random_network(ffn=ffn, num_registers=num_registers, image_size=70, drop_path_rate=drop_path_rate)
    images, masks = _views()
    num_rows = 3 * (7 + num_registers) + 5 * (3 + num_registers)
    generator = torch.Generator().manual_seed(0)
    out = network.forward_rows(images, masks, torch.arange(num_rows), generator=generator)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-6, name


def test_stochastic_depth_is_drawn_alike_for_blocks_and_rows(random_network: Network) -> None:
    network = random_network(image_size=70, drop_path_rate=0.4)
    (images, _), _ = _views()
    rows = torch.arange(3 * 7)
    whole = network.forward_rows([images], [None], rows, generator=torch.Generator().manual_seed(5))
    (found,) = network.intermediate(images, 1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(found.patches, whole.view(3, 7, -1)[:, 1:])
    assert not torch.allclose(found.patches, network(images).patches)


@pytest.mark.parametrize("num_images", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.95])
def test_stochastic_depth_keeps_exactly_the_share(num_images: int, rate: float) -> None:
    kept = max(int(num_images * (1 - rate)), 1)
    groups = [Group(num_images, 3), Group(num_images + 1, 2)]
    depth = StochasticDepth(rate, torch.Generator().manual_seed(0), groups)
    rows, factor, kept_groups = depth.draw(torch.device("cpu"))
    assert kept_groups == [(kept, 3), (max(int((num_images + 1) * (1 - rate)), 1), 2)]
    first = rows < 3 * num_images
    assert sorted((rows[first] // 3).unique_consecutive(return_counts=True)[1].tolist()) == [3] * kept
    assert factor[first].sum().item() == pytest.approx(3 * num_images)


def test_stochastic_depth_on_chosen_rows_is_that_of_their_images() -> None:
    def draw(chosen: Tensor | None) -> Drop:
        generator = torch.Generator().manual_seed(2)
        return StochasticDepth(0.5, generator, GROUPS).draw(torch.device("cpu"), rows=chosen)

    num_rows = sum(group.rows for group in GROUPS)
    whole = torch.zeros(num_rows).index_put((draw(None).rows,), draw(None).factor.squeeze(1))
    chosen = torch.arange(num_rows).flip(0)[::3]
    part = torch.zeros(len(chosen)).index_put((draw(chosen).rows,), draw(chosen).factor.squeeze(1))
    assert torch.equal(part, whole[chosen])
    assert 0 < part.count_nonzero() < len(chosen)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_recomputed_blocks_give_the_same_gradients_to_the_bit(random_network: Network, drop_path_rate: float) -> None:
    images, masks = _views()
    rows = torch.arange(0, 3 * 7 + 5 * 3, 2)
    gradients, kept = [], []
    for recompute in (False, True):
        network = random_network(image_size=70, drop_path_rate=drop_path_rate)
        network.recompute_blocks = recompute
        held: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            out = network.forward_rows(images, masks, rows, generator=torch.Generator().manual_seed(0))
        out.pow(2).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        kept.append(sum(held))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 2


def _block(kind: str) -> tuple[Block, Tensor]:
    """A block of which only one residual branch does something, and packed tokens for it."""
    generator = torch.Generator().manual_seed(0)
    block = Block(8, 2, ffn="mlp", ffn_hidden=16, layerscale_init=1.0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        (block.ls2 if kind == "attention" else block.ls1).gamma.zero_()
    return block, torch.randn(sum(g.rows for g in GROUPS), 8, generator=generator)


def _drops(rate: float, seed: int) -> tuple[Drop, Drop]:
    depth = StochasticDepth(rate, torch.Generator().manual_seed(seed), GROUPS)
    return depth.draw(torch.device("cpu")), depth.draw(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@torch.no_grad()
def test_stochastic_depth_leaves_the_expectation_unchanged(kind: str) -> None:
    block, x = _block(kind)
    rate, num_seeds = 0.4, 600
    whole = block(x, GROUPS) - x
    total = torch.zeros_like(x)
    for seed in range(num_seeds):
        total += block(x, GROUPS, drops=_drops(rate, seed)) - x
    # An image's factor is B / kept with probability kept / B: mean 1, variance B / kept - 1 (kept 3 of 5 and 1 of 2).
    # Five standard errors on the larger of the two.
    tolerance = 5 * (1.0 / num_seeds) ** 0.5
    assert ((total / num_seeds - whole).abs() <= tolerance * whole.abs() + 1e-4).all()
    assert whole.abs().mean() > 0.1


@torch.no_grad()
def test_images_dropped_from_both_branches_pass_unchanged() -> None:
    block, x = _block("attention")
    block.ls2.gamma.fill_(1.0)
    attention, ffn = _drops(0.5, 5)
    assert not torch.equal(attention.rows, ffn.rows)
    out = block(x, GROUPS, drops=(attention, ffn))
    dropped = torch.ones(len(x), dtype=torch.bool)
    dropped[torch.cat([attention.rows, ffn.rows])] = False
    assert dropped.any()
    assert torch.equal(out[dropped], x[dropped])
    assert (out[~dropped] != x[~dropped]).any(dim=1).all()


@torch.no_grad()
def test_stochastic_depth_is_a_function_of_its_seed(random_network: Network) -> None:
    network = random_network(image_size=70, drop_path_rate=0.4)
    images, masks = _views()
    rows = torch.arange(3 * 7 + 5 * 3)

    def run(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return network.forward_rows(images, masks, rows, generator=generator)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(None), run(None))
    assert not torch.equal(run(1), run(None))


@torch.no_grad()
def test_rows_with_stochastic_depth_equal_the_full_path(random_network: Network) -> None:
    network = random_network(image_size=70, drop_path_rate=0.4)
    images, masks = _views()
    num_rows = 3 * 7 + 5 * 3
    everything = network.forward_rows(images, masks, torch.arange(num_rows), generator=torch.Generator().manual_seed(9))
    rows = torch.tensor([0, 1, 7, 9, 14, 21, 22, 24, 35])
    chosen = network.forward_rows(images, masks, rows, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(chosen, everything[rows], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_whose_images_were_all_dropped_still_come_back(random_network: Network) -> None:
    network = random_network(image_size=70, drop_path_rate=0.9)
    images, masks = _views()
    for seed in range(20):  # 1 of 3 and 1 of 5 images kept: many seeds drop the one image asked for
        out = network.forward_rows(images, masks, torch.tensor([2]), generator=torch.Generator().manual_seed(seed))
        assert out.shape == (1, 48)
        assert out.isfinite().all()
