"""Public heads against transformers on random weights, and the files that are refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import foveal
from foveal.errors import WeightsError
from foveal.features.extract import Model
from foveal.tasks.dense import Level
from foveal.tasks.depth import DptDepth
from foveal.tasks.public_heads import open_public_head

SIDE, WIDTH, CHANNELS, FUSION = 70, 48, [6, 12, 24, 48], 32


def randomise(network: nn.Module, last: nn.Module) -> None:
    """Draw weights whose outputs stay within a few units, and mostly above 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        last.bias.fill_(1)  # type: ignore[operator,union-attr]


def official_names(network: nn.Module) -> dict[str, Tensor]:
    """Return the backbone of a transformers model under the official names."""
    from foveal.backbone.huggingface import from_huggingface

    state = {name.removeprefix("backbone."): value for name, value in network.state_dict().items()}
    inside = ("embeddings.", "encoder.", "layernorm.")
    return from_huggingface({name: value for name, value in state.items() if name.startswith(inside)})


def depth_anything_file(network: nn.Module, path: Path) -> Path:
    """Write a transformers DepthAnything as its authors' checkpoints are laid out."""
    tensors = {f"pretrained.{name}": value for name, value in official_names(network).items()}
    for name, value in network.state_dict().items():
        if found := re.match(r"neck\.reassemble_stage\.layers\.(\d)\.(projection|resize)\.(.+)", name):
            stem = {"projection": "projects", "resize": "resize_layers"}[found[2]]
            tensors[f"depth_head.{stem}.{found[1]}.{found[3]}"] = value
        elif found := re.match(r"neck\.convs\.(\d)\.weight", name):
            tensors[f"depth_head.scratch.layer{int(found[1]) + 1}_rn.weight"] = value
        elif found := re.match(r"neck\.fusion_stage\.layers\.(\d)\.(.+)", name):
            rest = found[2].replace("projection.", "out_conv.")
            rest = re.sub(r"residual_layer(\d)\.convolution(\d)", r"resConfUnit\1.conv\2", rest)
            tensors[f"depth_head.scratch.refinenet{4 - int(found[1])}.{rest}"] = value
        elif found := re.match(r"head\.conv([123])\.(.+)", name):
            stem = {"1": "output_conv1", "2": "output_conv2.0", "3": "output_conv2.2"}[found[1]]
            tensors[f"depth_head.scratch.{stem}.{found[2]}"] = value
    torch.save({name: value.clone() for name, value in tensors.items()}, path)
    return path


def images(*, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "stages", "metric"),
    [
        ("depth_anything_vits14.pth", [5, 6, 7, 8], False),
        ("depth_anything_v2_vits.pth", [2, 4, 6, 8], False),
        ("depth_anything_v2_metric_hypersim_vits.pth", [2, 4, 6, 8], True),
    ],
)
def test_depth_anything_opens_as_transformers_has_it(
    tmp_path: Path, name: str, stages: list[int], metric: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=8,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=14,
        out_indices=stages,
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=WIDTH,
        neck_hidden_sizes=CHANNELS,
        fusion_hidden_size=FUSION,
        depth_estimation_type="metric" if metric else "relative",
        max_depth=20 if metric else 1,
    )
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    randomise(network, network.head.conv3)
    path = depth_anything_file(network, tmp_path / name)
    model = foveal.load(path, engine="torch", num_heads=3)
    head = open_public_head(path, model)
    assert head.attach(model).fitted_size == 518
    with torch.no_grad():
        wanted = network(images()).predicted_depth
    found = head.attach(model).scores(images())[:, 0]
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() <= 1e-4 * max(1, float(wanted.abs().max()))
    # At another size from our tokens on: position embeddings are resized as the authors do, not as transformers does.
    pictures = images(height=42, width=98)
    tokens = model.engine.intermediate(pictures, head.card.layers, norm=True)
    joined = [torch.cat([one.cls[:, None], one.patches], dim=1).clone() for one in tokens]
    with torch.no_grad():
        wanted = network.head(network.neck(joined, 3, 7), 3, 7)
    found = head.attach(model).scores(pictures)[:, 0]
    assert (found - wanted).abs().max() <= 1e-4 * max(1, float(wanted.abs().max()))


def test_dinov2_dpt_head_is_that_of_transformers(model: Model, tmp_path: Path) -> None:
    """Both read the same weights under the official names (which the golden file fixes); ours from a file."""
    transformers = pytest.importorskip("transformers")
    drawn = DptDepth(WIDTH)
    randomise(drawn, drawn.conv_depth["head"][4])  # type: ignore[index]
    state = {f"decode_head.{name}": value.detach().clone() for name, value in drawn.state_dict().items()}
    path = tmp_path / "dinov2_vits14_nyu_dpt_head.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, path)
    head = open_public_head(path, model)
    assert (head.card.norm, head.card.layers, head.card.settings["max_depth"]) == (False, [0, 1, 2, 3], 10)

    backbone = transformers.Dinov2Config(hidden_size=WIDTH, num_hidden_layers=4, reshape_hidden_states=False)
    config = transformers.DPTConfig(
        backbone_config=backbone,
        neck_hidden_sizes=CHANNELS,
        fusion_hidden_size=256,
        readout_type="project",
        use_bias_in_fusion_residual=False,
        add_projection=True,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    network = transformers.DPTForDepthEstimation(config).eval()
    theirs = {name: value for name, value in network.state_dict().items() if not name.startswith("backbone.")}
    fill = {}
    for name, value in state.items():
        mapped = name.removeprefix("decode_head.")
        mapped = re.sub(
            r"^reassemble_blocks\.projects\.(\d)\.conv", r"neck.reassemble_stage.layers.\1.projection", mapped
        )
        mapped = re.sub(r"^reassemble_blocks\.resize_layers\.(\d)", r"neck.reassemble_stage.layers.\1.resize", mapped)
        mapped = re.sub(r"^reassemble_blocks\.", "neck.reassemble_stage.", mapped)
        mapped = re.sub(r"^convs\.(\d)\.conv", r"neck.convs.\1", mapped)
        mapped = re.sub(r"^fusion_blocks\.(\d)\.", r"neck.fusion_stage.layers.\1.", mapped)
        mapped = re.sub(r"res_conv_unit(\d)\.conv(\d)\.conv", r"residual_layer\1.convolution\2", mapped)
        mapped = re.sub(r"layers\.(\d)\.project\.conv", r"layers.\1.projection", mapped)
        mapped = re.sub(r"^project\.conv", "head.projection", mapped)
        fill[re.sub(r"^conv_depth\.head", "head.head", mapped)] = value
    assert set(fill) <= set(theirs)
    assert all("residual_layer1" in name for name in set(theirs) - set(fill))  # of the deepest level, never used
    network.load_state_dict(fill, strict=False)

    raw = model.engine.intermediate(images(), head.card.layers, norm=False)
    with torch.no_grad():
        neck = network.neck([torch.cat([t.cls[:, None], t.patches], dim=1).clone() for t in raw], 5, 5)
        wanted = network.head(neck) + 0.001
    found = head.network([_level(t.patches, t.cls) for t in raw])[:, 0].detach()
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() <= 1e-4 * max(1, float(wanted.abs().max()))


def _level(patches: Tensor, cls: Tensor) -> Level:
    return Level(patches.clone().transpose(1, 2).unflatten(2, (5, 5)), cls.clone())


@pytest.mark.parametrize(("name", "num_levels", "layers"), [("linear", 1, [3]), ("ms", 4, [0, 1, 2, 3])])
def test_segmentation_heads_open_with_the_statistics_of_their_norm(
    model: Model, tmp_path: Path, name: str, num_levels: int, layers: list[int]
) -> None:
    generator = np.random.default_rng(0)
    channels = WIDTH * num_levels
    scale, shift, mean = (generator.normal(size=channels).astype(np.float32) for _ in range(3))
    variance = generator.uniform(0.5, 2, channels).astype(np.float32)
    weight = generator.normal(size=(21, channels)).astype(np.float32)
    bias = generator.normal(size=21).astype(np.float32)
    state = {
        "decode_head.conv_seg.weight": torch.from_numpy(weight)[:, :, None, None],
        "decode_head.conv_seg.bias": torch.from_numpy(bias),
        "decode_head.bn.weight": torch.from_numpy(scale),
        "decode_head.bn.bias": torch.from_numpy(shift),
        "decode_head.bn.running_mean": torch.from_numpy(mean),
        "decode_head.bn.running_var": torch.from_numpy(variance),
        "decode_head.bn.num_batches_tracked": torch.tensor(5),
    }
    path = tmp_path / f"dinov2_vits14_voc2012_{name}_head.pth"
    torch.save({"state_dict": state}, path)
    head = open_public_head(path, model)
    assert (head.card.layers, head.card.norm) == (layers, True)
    raw = model.engine.intermediate(images(), layers, norm=True)
    tokens = torch.cat([t.patches for t in raw], dim=2).numpy()
    wanted = ((tokens - mean) / np.sqrt(variance + 1e-5) * scale + shift) @ weight.T + bias
    found = head.network([_level(t.patches, t.cls) for t in raw])
    np.testing.assert_allclose(found.detach().flatten(2).transpose(1, 2), wanted, rtol=1e-4, atol=1e-3)


def test_files_that_do_not_fit_are_refused(model: Model, golden: Path, tmp_path: Path) -> None:
    reference = load_file(golden / "depth_heads.safetensors")
    state = {
        name.replace("linear4.weights.", "decode_head."): value.clone()
        for name, value in reference.items()
        if name.startswith("linear4.weights.")
    }
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": state}, path)
    with pytest.raises(WeightsError, match="does not say its range of depths; give max_depth"):
        open_public_head(path, model)
    assert open_public_head(path, model, max_depth=5).card.settings["num_levels"] == 4
    with pytest.raises(WeightsError, match="no Depth Anything checkpoint"):
        open_public_head(path, model, max_depth=5, version="v1")
    torch.save({"state_dict": {"decode_head.conv_depth.weight": torch.zeros(256, 100, 1, 1)}}, path)
    with pytest.raises(WeightsError, match="reads 100 channels, and this backbone has 96 or, of four blocks, 384"):
        open_public_head(path, model)
    torch.save({"state_dict": {"decode_head.conv_depth.weight": torch.zeros(256)}}, path)
    with pytest.raises(WeightsError, match=r"decode_head\.conv_depth\.weight has the shape \(256,\), .* of no head"):
        open_public_head(path, model)
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(WeightsError, match=r"holds fc\.weight; public heads hold"):
        open_public_head(path, model)
