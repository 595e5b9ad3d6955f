"""What the doctor says of good files, of wrong ones, and of numbers that nobody trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveal.backbone.doctor import diagnose
from foveal.backbone.recognise import explain_names
from foveal.backbone.values import evidence, implausible, verdict
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.errors import WeightsError

Network = Callable[..., VisionTransformer]
SMALL = {"depth": 2, "image_size": 42}


@pytest.fixture(scope="module")
def untrained() -> VisionTransformer:
    return VisionTransformer(backbone_config("vit_micro", image_size=42)).init_weights(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained() -> VisionTransformer:
    """The same network after 60 steps of telling images by the direction of their brightness."""
    config = backbone_config("vit_micro", depth=2, image_size=42, layerscale_init=1.0)
    network = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    places = torch.linspace(-1, 1, 42)
    for _ in range(60):
        targets = torch.randn(8, 2, generator=generator)
        slope = targets[:, :1, None] * places[:, None] + targets[:, 1:, None] * places
        images = (slope[:, None] + 0.3 * torch.randn(8, 3, 42, 42, generator=generator)).contiguous()
        loss = (network(images).cls[:, :2] - targets).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    return network


def test_untrained_and_trained_networks_are_told_apart(
    untrained: VisionTransformer, trained: VisionTransformer
) -> None:
    before = evidence(untrained.state_dict(), depth=6)
    after = evidence(trained.state_dict(), depth=2)
    assert before.edge < 1.03
    assert before.untouched
    assert abs(before.smoothness) < 0.2
    assert verdict(before).startswith("random, not trained")
    assert "norms and LayerScale as at initialisation" in verdict(before)
    assert after.edge > 1.12
    assert not after.untouched
    assert verdict(after).startswith("trained (")


def test_noise_everywhere_is_not_taken_for_training(random_network: Network) -> None:
    found = evidence(random_network(variant="vit_micro", image_size=42).state_dict(), depth=6)
    assert verdict(found).startswith("random, not trained")
    assert "not those of an initialisation" in verdict(found)


def test_a_known_matrix_has_its_known_edge() -> None:
    from foveal.backbone.values import _edge, _smoothness

    # Singular values of diag(1, 1, 1, 1): 1; root mean square 1/2: edge = 1 / (1/2 (2 + 2)).
    assert _edge(torch.eye(4)) == pytest.approx(0.5)
    assert _edge(torch.zeros(3, 5)) == 0.0
    ramp = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9), indexing="ij"), dim=-1)
    assert _smoothness(torch.cat([torch.zeros(1, 2), ramp.flatten(0, 1)])[None]) > 0.9
    assert _smoothness(torch.zeros(1, 2, 5)) == 0.0


def test_properties_of_a_good_file(random_network: Network, tmp_path: Path) -> None:
    network = random_network(num_registers=4, **SMALL).half()
    teacher = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"teacher": {**teacher, "dino_head.mlp.0.bias": torch.zeros(3)}, "student": {"a": torch.zeros(1)}},
               tmp_path / "x.pth")  # fmt: skip
    found = dict((diagnosis := diagnose(tmp_path / "x.pth")).rows)
    assert found["network"] == "custom, patch 14, 4 registers"
    assert found["format"] == "official (the key names of the public DINOv2 files), found under teacher.backbone"
    assert found["blocks"] == "2 of width 48, 3 heads, mlp"
    assert found["image size"] == "42 (3 x 3 patches)"
    assert found["parameters"] == f"{sum(p.numel() for p in network.parameters()):,}"
    assert found["dtype"] == "float16 (36 tensors)"
    assert found["heads"] == "of pretraining, 1 tensors"
    assert found["not read"] == "student (1 tensors)"
    assert found["licence"] == "unknown"
    assert found["integrity"] == "zip, every checksum verified"
    assert diagnosis.warnings == []


def test_licence_of_a_card_is_shown_and_safetensors_alone_is_unchecked(random_network: Network, tmp_path: Path) -> None:
    network = random_network(**SMALL)
    save_model(tmp_path / "model", network, Card(name="x", backbone=network.config, licence="CC-BY-NC-4.0"))
    diagnosis = diagnose(tmp_path / "model")
    assert ("licence", "CC-BY-NC-4.0 (non-commercial terms)") in diagnosis.rows
    assert ("integrity", "sha256 as in the card") in diagnosis.rows
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert diagnose(tmp_path / "alone.safetensors").warnings == [
        "nothing in this format shows damage; compare the sha256 with the publisher's"
    ]


def test_implausible_values_are_named(
    random_network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_network(**SMALL).state_dict()
    assert implausible(tensors) == []
    tensors["norm.bias"][3] = 7e8
    tensors["blocks.1.attn.proj.weight"].zero_()
    save_file(tensors, tmp_path / "x.safetensors")
    warnings = diagnose(tmp_path / "x.safetensors").warnings
    assert "implausible: norm.bias has a value of 7e+08; the file may be damaged" in warnings
    assert "implausible: blocks.1.attn.proj.weight is all zeros; the file may be damaged" in warnings
    assert "norm.bias has a value of 7e+08" in caplog.text


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ("vit_nano14_reg4", r"num_registers is 0 instead of 4; take the other file"),
        ("vit_nano14", r"\(custom, patch 14, no registers\), not .*: depth is 2 instead of 3"),
        ("dinov2_vitb14_reg", "width is 48 instead of 768; depth is 2 instead of 12; num_heads is 3 instead of 12"),
        ("vitx14", "'vitx14' names no network; did you mean 'vit"),
        ("resnet50", "'resnet50' names no network"),
    ],
)
def test_another_network_than_expected_is_refused(
    random_network: Network, tmp_path: Path, expect: str, message: str
) -> None:
    torch.save(random_network(**SMALL).state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        diagnose(tmp_path / "x.pth", expect=expect)


def test_the_expected_network_passes(random_network: Network, tmp_path: Path) -> None:
    torch.save(random_network(num_registers=4, image_size=28).state_dict(), tmp_path / "x.pth")
    assert diagnose(tmp_path / "x.pth", expect="vit_nano14_reg").rows
    assert diagnose(tmp_path / "x.pth", expect="dinov2_vit_nano14_reg4").rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; the download or the copy did not finish"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 88\n", "is a Git LFS pointer"),
        (b"\n  <!DOCTYPE html><html>404</html>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b'{"hidden_size": 384}', "is JSON text, not weights"),
        (b"\x1f\x8b\x08" + bytes(40), "is compressed with gzip"),
        (bytes(4096), "begins with zeros only"),
        (b"model_0001249.rank_0.pth", r"is text that names another file, model_0001249\.rank_0\.pth"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5"),
        (b"GGUF" + bytes(40), "is a GGUF file"),
        ((500).to_bytes(8, "little") + b'{"a":', "is cut short: its header alone has 500 bytes, the file 13"),
        ((5).to_bytes(8, "little") + b'{"a":' + bytes(9), "cannot be read"),
        (b"just some words", r"is no file of weights that is known here \(it is text and begins with b'just som'"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        diagnose(path)


def _zeros(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 3) for name in names}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors at all"),
        (_zeros("weight", "bias"), r"holds a linear classification head without its backbone \(weight \(2, 3\)"),
        (_zeros("decode_head.conv_depth.weight"), "holds a depth or segmentation head without its backbone"),
        (_zeros("dino_head.mlp.0.weight", "dino_head.mlp.0.bias"), "holds the self-supervised heads of a training run"),
        (_zeros("blocks.0.attn.qkv.weight", "rope_embed.periods"), r"holds a DINOv3 network \(rotary positions\)"),
        (_zeros("visual.transformer.resblocks.0.attn.in_proj_weight"), "holds a CLIP network"),
        (_zeros("layer1.0.conv1.weight", "fc.weight"), "holds a ResNet"),
        (_zeros("base_model.blocks.0.attn.qkv.lora_A.weight"), "holds LoRA adapters without their backbone"),
        (_zeros("backbone._fsdp_wrapped_module._flat_param"), "holds one shard of an FSDP checkpoint"),
        (_zeros("state.0.exp_avg", "state.0.exp_avg_sq"), "holds the state of an optimizer without the weights"),
        (_zeros("some.thing", "other"), "no DINOv2 backbone: 2 tensors, among them some.thing, other"),
        (_zeros("pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
         r"a plain ViT without LayerScale \(DINO, MAE, DeiT or supervised\)"),
        (_zeros("pos_embed", "decoder_pos_embed", "blocks.0.attn.qkv.weight"), "a masked autoencoder"),
        (_zeros("embeddings.position_embeddings", "encoder.layer.0.layernorm_before.weight"), "a plain ViT in Hugging"),
    ],
)  # fmt: skip
def test_other_checkpoints_are_named(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        diagnose(tmp_path / "x.pth")


def test_a_shard_of_distributed_training_is_named(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "model_0001249.rank_0.pth"
    with zipfile.ZipFile(path, "w") as archive:
        name = b"torch.distributed._shard.sharded_tensor.api\nShardedTensor\n"
        archive.writestr("archive/data.pkl", b"\x80\x02c" + name + b")\x81.")
    with pytest.raises(WeightsError, match=r"is one rank's shard of a distributed \(FSDP\) checkpoint: .* load all"):
        diagnose(path)


def test_chunked_names_count_as_layerscale() -> None:
    assert "plain ViT" not in explain_names({"blocks.0.0.ls1.gamma": (3,), "blocks.0.0.norm1.weight": (3,)})
