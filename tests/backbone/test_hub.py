"""The table of checkpoints against the numbers of the papers and of a network that is built."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from foveal.backbone.hub import CHECKPOINTS, checkpoint
from foveal.backbone.parameters import (
    backbone_parameters,
    classifier_parameters,
    dpt_parameters,
    linear_depth_parameters,
    linear_segmentation_parameters,
)
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import DownloadError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dinov2_vits14", 22_056_576),
        ("dinov2_vits14_reg", 22_058_112),
        ("dinov2_vitb14", 86_580_480),
        ("dinov2_vitb14_reg", 86_583_552),
        ("dinov2_vitl14", 304_368_640),
        ("dinov2_vitl14_reg", 304_372_736),
        ("dinov2_vitg14", 1_136_480_768),
        ("dinov2_vitg14_reg", 1_136_486_912),
    ],
)
def test_backbones_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    row = checkpoint(name)
    assert row.parameters == parameters
    # A float32 file: the parameters and at most a few kilobytes of names.
    assert 0 < row.size_bytes - 4 * parameters < 300_000


@pytest.mark.parametrize(
    ("name", "millions"),
    [("depth_anything_v2_vits", 24.8), ("depth_anything_v2_vitb", 97.5), ("depth_anything_v2_vitl", 335.3)],
)
def test_depth_anything_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    row = checkpoint(name)
    assert round(row.parameters / 1e6, 1) == millions
    assert 0 < row.size_bytes - 4 * row.parameters < 300_000
    assert row.licence.name == ("Apache-2.0" if name.endswith("vits") else "CC-BY-NC-4.0")


@pytest.mark.parametrize("changes", [{"num_registers": 3, "channels": 5}, {"ffn": "swiglu", "image_size": 42}])
def test_count_is_that_of_a_network_that_is_built(changes: dict) -> None:
    config = backbone_config("vit_nano", **{"patch_size": 14, "image_size": 28} | changes)
    with torch.device("meta"):
        network = VisionTransformer(config)
    assert backbone_parameters(config) == sum(parameter.numel() for parameter in network.parameters())


def test_heads_are_counted_as_by_hand() -> None:
    assert classifier_parameters(3, num_layers=4, num_classes=7) == (5 * 3 + 1) * 7
    assert linear_depth_parameters(3, num_layers=4, num_bins=5) == (2 * 3 * 4 + 1) * 5
    assert linear_segmentation_parameters(3, num_layers=4, num_classes=5) == 2 * 12 + 13 * 5


def test_dpt_is_counted_as_the_reference_is_stored(golden: Path) -> None:
    with safe_open(golden / "depth_heads.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("dpt.weights.")]  # noqa: SIM118 (not a dict)
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    assert dpt_parameters(48, features=32) == stored


def test_every_row_is_complete_and_consistent() -> None:
    assert len(CHECKPOINTS) == 8 + 16 + 24 + 16 + 1 + 3 + 1 + 3 + 12
    files = [row.file_name for row in CHECKPOINTS.values() if row.url]
    assert len(files) == len(set(files)) == 68
    for row in CHECKPOINTS.values():
        assert row.licence.url, row.name
        assert row.licence.terms != "unknown", row.name
        assert (row.sha256 is None) == (row.hash_source is None), row.name
        assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256), row.name
        assert row.url is None or row.url.startswith(
            ("https://dl.fbaipublicfiles.com/dinov2/", "https://huggingface.co/")
        )
        assert row.belongs_to is None or CHECKPOINTS[row.belongs_to].kind == "backbone", row.name


def test_urls_follow_the_pattern_of_the_source() -> None:
    base = "https://dl.fbaipublicfiles.com/dinov2"
    assert checkpoint("dinov2_vits14").url == f"{base}/dinov2_vits14/dinov2_vits14_pretrain.pth"
    # The link in the source's README has letters swapped here.
    assert checkpoint("dinov2_vitg14_reg_linear_head").url == f"{base}/dinov2_vitg14/dinov2_vitg14_reg4_linear_head.pth"
    assert checkpoint("dinov2_vitb14_nyu_dpt_head").url == f"{base}/dinov2_vitb14/dinov2_vitb14_nyu_dpt_head.pth"
    assert checkpoint("dinov2_vitl14_voc2012_ms_head").url == f"{base}/dinov2_vitl14/dinov2_vitl14_voc2012_ms_head.pth"


def test_models_with_terms_of_their_own_have_no_url() -> None:
    for name in ("xray_dino_vitl16", "cell_dino_hpa_vitl14", "dinov3_vitb16"):
        row = checkpoint(name)
        assert row.url is None
        assert row.licence.terms in ("non-commercial", "custom")


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(
        DownloadError, match=r"called 'dinov2_vit_s14'; did you mean 'dinov2_vits14'\?; `foveal models`"
    ):
        checkpoint("dinov2_vit_s14")
