import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foveal.backbone.licence import accept, licence_named
from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.tasks.dense import Level
from foveal.tasks.depth import DptDepth
from foveal.tasks.head import build_network
from foveal.tasks.kinds import KINDS, find_kind, head_card
from foveal.tasks.segment import DptSegmenter, MlpSegmenter


@pytest.mark.parametrize(
    ("task", "kind", "layers", "norm", "upsampling"),
    [
        ("segmentation", "linear", [3], True, 1),
        ("segmentation", "ms", [0, 1, 2, 3], True, 1),
        ("segmentation", "mlp", [3], True, 1),
        ("segmentation", "dpt", [0, 1, 2, 3], False, 8),
        ("depth", "lin.1", [3], False, 4),
        ("depth", "lin.4", [0, 1, 2, 3], False, 4),
        ("depth", "dpt", [0, 1, 2, 3], False, 16),
    ],
)
def test_every_kind_reads_its_blocks_and_answers_maps(
    model: Model, task: str, kind: str, layers: list[int], norm: bool, upsampling: int
) -> None:
    card = head_card(model, task, kind, classes=("a", "b", "c"))  # type: ignore[arg-type]
    assert (card.layers, card.norm) == (layers, norm)
    network = build_network(card).eval()
    width = model.card.backbone.width
    levels = [Level(torch.ones(2, width, 4, 6), torch.ones(2, width)) for _ in layers]
    maps = 3 if task == "segmentation" else 1
    assert network(levels).shape == (2, maps, 4 * upsampling, 6 * upsampling)


def test_the_table_is_whole() -> None:
    assert {(task, kind) for task, kinds in KINDS.items() for kind in kinds if task in ("segmentation", "depth")} == {
        *(("segmentation", kind) for kind in ("linear", "ms", "mlp", "dpt")),
        *(("depth", kind) for kind in ("lin.1", "lin.4", "dpt")),
    }


def test_a_kind_of_another_task_is_refused() -> None:
    with pytest.raises(FovealError, match=r"no segmentation head is called 'lin\.1'; choose linear, ms, mlp, dpt"):
        find_kind("segmentation", "lin.1")
    with pytest.raises(FovealError, match="no head is fitted for 'colour'; choose classification, segmentation, depth"):
        find_kind("colour", "dpt")  # type: ignore[arg-type]


def test_mlp_is_the_same_network_on_every_patch() -> None:
    torch.manual_seed(0)
    head = MlpSegmenter(5, num_classes=3).eval()
    assert head.bn.running_mean is not None
    head.bn.running_mean.normal_()
    patches = torch.randn(2, 5, 3, 7)
    found = head([Level(patches, torch.zeros(2, 5))])

    def layer(rows: Tensor, convolution: torch.nn.Conv2d) -> Tensor:
        return F.linear(rows, convolution.weight[:, :, 0, 0], convolution.bias)

    rows = (patches.permute(0, 2, 3, 1) - head.bn.running_mean) / (1 + head.bn.eps) ** 0.5
    wanted = layer(F.gelu(layer(rows, head.hidden)), head.conv_seg)
    torch.testing.assert_close(found.permute(0, 2, 3, 1), wanted, rtol=1e-5, atol=1e-6)


def test_dpt_of_masks_is_the_decoder_of_depth_and_a_linear_layer() -> None:
    """The decoder itself is checked against the reference as part of the depth head: here its weights fit, and stay."""
    torch.manual_seed(0)
    depth, head = DptDepth(8, fusion_width=6), DptSegmenter(8, num_classes=7, fusion_width=6)
    shared = {name: value for name, value in depth.state_dict().items() if not name.startswith("conv_depth.")}
    missing = head.load_state_dict(shared, strict=False).missing_keys
    assert sorted(missing) == ["conv_seg.bias", "conv_seg.weight"]
    levels = [Level(torch.randn(2, 8, 3, 4), torch.randn(2, 8)) for _ in range(4)]
    rows = depth.fused(levels).permute(0, 2, 3, 1)
    wanted = F.linear(rows, head.conv_seg.weight[:, :, 0, 0], head.conv_seg.bias)
    torch.testing.assert_close(head(levels).permute(0, 2, 3, 1), wanted)


def test_acceptance_of_a_licence_is_not_copied_into_a_head(model: Model) -> None:
    accepted = accept(licence_named("CC-BY-NC-4.0"), what="m", action="export", name="CC-BY-NC-4.0")
    owner = Model(model.engine, model.card.model_copy(update={"licence": accepted}))
    licence = head_card(owner, "depth", "lin.1").licence
    assert (licence.name, licence.accepted) == ("CC-BY-NC-4.0", ())
