"""Checkpoints of every format: read, written, read again, to the bit; and told apart by their tensors alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.backbone.convert import convert
from foveal.backbone.doctor import diagnose
from foveal.backbone.formats import load_checkpoint, read_checkpoint
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, load_model, save_model
from foveal.errors import LicenceError, WeightsError

Network = Callable[..., VisionTransformer]
NETWORKS = [{}, {"num_registers": 4}, {"ffn": "swiglu"}, {"ffn": "swiglu", "num_registers": 3, "channels": 5}]
SMALL = {"depth": 2, "image_size": 42}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Equal names, types and bits."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8)), name


@pytest.fixture
def model(random_network: Network, tmp_path: Path) -> Callable[..., tuple[Path, VisionTransformer, Card]]:
    def make(dtype: torch.dtype = torch.float32, **changes: object) -> tuple[Path, VisionTransformer, Card]:
        network = random_network(**{**SMALL, **changes}).to(dtype)
        channels = network.config.channels
        card = Card(
            name="small",
            backbone=network.config,
            mean=[0.25 + 0.125 * i for i in range(channels)],
            std=[0.5] * channels,
            crop_size=28,
            resize_size=32,
            licence="Apache-2.0",
            lineage={"seed": 7},
        )
        return tmp_path / "model", network, save_model(tmp_path / "model", network, card)

    return make


@pytest.mark.parametrize("changes", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("to", ["official", "huggingface", "foveal"])
def test_round_trip_is_equal_to_the_bit(
    model: Callable, tmp_path: Path, changes: dict, dtype: torch.dtype, to: str
) -> None:
    source, network, card = model(dtype, **changes)
    there = tmp_path / ("there.pth" if to == "official" else "there")
    convert(source, there, to=to)
    checkpoint = read_checkpoint(there)
    assert checkpoint.layout == to
    assert_equal(checkpoint.tensors, network.state_dict())
    convert(there, tmp_path / "back", to="foveal")
    back = read_checkpoint(tmp_path / "back")
    assert_equal(back.tensors, network.state_dict())
    assert_equal(load_file(tmp_path / "back" / "model.safetensors"), network.state_dict())
    loaded, _ = load_model(tmp_path / "back")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    if to != "official":
        described = {"name", "mean", "std", "crop_size", "resize_size", "licence", "backbone"}
        assert back.card.model_dump(include=described) == card.model_dump(include=described)
    again = tmp_path / ("again.pth" if to == "official" else "again")
    convert(tmp_path / "back", again, to=to)
    if to == "official":
        assert again.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", NETWORKS)
def test_timm_to_foveal_to_timm_is_equal_to_the_bit(
    model: Callable, tmp_path: Path, changes: dict, dtype: torch.dtype
) -> None:
    source, network, _ = model(dtype, **changes)
    with torch.no_grad():
        network.cls_token[0, 0, :3] = torch.tensor([-0.0, 0.0, 1.0])
    convert(source, tmp_path / "timm", to="timm")
    theirs = load_file(tmp_path / "timm" / "model.safetensors")
    assert "mask_token" not in theirs
    assert ("reg_token" in theirs) == bool(network.config.num_registers)
    theirs["cls_token"][0, 0, :2] = torch.tensor([-0.0, 0.0], dtype=dtype)  # the sign of a zero must survive
    save_file(theirs, tmp_path / "timm.safetensors")
    convert(tmp_path / "timm.safetensors", tmp_path / "ours", to="foveal", num_heads=3)
    convert(tmp_path / "ours", tmp_path / "back", to="timm")
    assert_equal(load_file(tmp_path / "back" / "model.safetensors"), theirs)


@torch.no_grad()
@pytest.mark.parametrize("changes", NETWORKS)
def test_what_timm_cannot_hold_is_said_and_changes_no_feature(model: Callable, tmp_path: Path, changes: dict) -> None:
    source, network, _ = model(**changes)
    _, lost = convert(source, tmp_path / "timm", to="timm")
    folded = ["the class token's position as a tensor of its own (folded into the class token)"]
    assert lost == ["mask token (timm has none)", *(folded if network.config.num_registers else [])]
    back, card = load_checkpoint(tmp_path / "timm")
    assert card.lineage["parent"]["lost"] == lost
    assert card.lineage["parent"]["format"] == "foveal"
    assert card.lineage["parent"]["parent"] == {"seed": 7}
    images = torch.randn(2, network.config.channels, 42, 28, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(back(images), network(images), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
    assert not back.mask_token.any()


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_chunked_blocks_of_training_are_put_in_order(
    random_network: Network, tmp_path: Path, chunks: int, padded: bool
) -> None:
    network = random_network(depth=5, image_size=42)
    size = 5 // chunks
    chunked, incomplete, without_block = {}, {}, {}
    for name, tensor in network.state_dict().items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        new = name
        if match:
            chunk, place = divmod(int(match[1]), size)
            new = f"blocks.{chunk}.{match[1] if padded else place}.{match[2]}"
        chunked[new] = tensor
        if name != "blocks.0.norm1.weight":
            incomplete[new] = tensor
        if not name.startswith("blocks.1."):
            without_block[new] = tensor
    torch.save(chunked, tmp_path / "x.pth")
    assert_equal(read_checkpoint(tmp_path / "x.pth").tensors, network.state_dict())
    torch.save(incomplete, tmp_path / "y.pth")
    with pytest.raises(WeightsError, match=r"y\.pth does not fit this network: missing blocks\.0\.norm1\.weight"):
        read_checkpoint(tmp_path / "y.pth")
    torch.save(without_block, tmp_path / "z.pth")
    if padded:
        with pytest.raises(WeightsError, match=r"z\.pth does not fit this network: missing blocks\.1\.norm1"):
            read_checkpoint(tmp_path / "z.pth")
    elif chunks == 3:  # with two blocks a chunk, the last of a chunk can be missing without a trace
        with pytest.raises(WeightsError, match=r"z\.pth: the numbers of the chunked blocks have gaps"):
            read_checkpoint(tmp_path / "z.pth")


@pytest.mark.parametrize(
    ("wrap", "taken_from"),
    [
        (lambda own, other: {"teacher": {f"backbone.{n}": t for n, t in own.items()}}, "teacher.backbone"),
        (lambda own, other: {"teacher": {f"module.backbone.{n}": t for n, t in own.items()}}, "teacher.backbone"),
        (lambda own, other: {"model": {f"_orig_mod.{n}": t for n, t in own.items()}, "epoch": 3}, "model"),
        (lambda own, other: {"student": other, "teacher": own, "optimizer": {"state": {0: {"step": 3}}}}, "teacher"),
        (lambda own, other: {f"student.backbone.{n}": t for n, t in other.items()}
         | {f"teacher.backbone.{n}": t for n, t in own.items()}, "teacher.backbone"),
        (lambda own, other: {"model_ema": own, "model": other}, "model_ema"),
        (lambda own, other: {"state_dict": {f"model.encoder.{n}": t for n, t in own.items()}},
         "state_dict.model.encoder"),
    ],
)  # fmt: skip
def test_backbone_is_found_under_any_prefix(
    random_network: Network, tmp_path: Path, wrap: Callable, taken_from: str
) -> None:
    own, other = random_network(**SMALL).state_dict(), random_network(**SMALL, seed=1).state_dict()
    torch.save(wrap(own, other), tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert_equal(checkpoint.tensors, own)
    assert checkpoint.card.lineage["taken_from"] == taken_from


def test_heads_of_a_training_checkpoint_come_along(random_network: Network, tmp_path: Path) -> None:
    network = random_network(**SMALL)
    heads = {"dino_head.last_layer.weight_v": torch.randn(7, 5), "ibot_head.mlp.0.bias": torch.randn(3)}
    teacher = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()} | heads
    torch.save({"teacher": teacher, "iteration": 1249}, tmp_path / "teacher_checkpoint.pth")
    checkpoint, lost = convert(tmp_path / "teacher_checkpoint.pth", tmp_path / "model", to="foveal")
    assert lost == []
    assert_equal(load_file(tmp_path / "model" / "ssl_heads.safetensors"), heads)
    assert checkpoint.left_out == {}
    _, lost = convert(tmp_path / "model", tmp_path / "hub.pth", to="official")
    assert lost[0] == "heads of pretraining (2 tensors)"
    (tmp_path / "model" / "ssl_heads.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"ssl_heads\.safetensors is damaged: its sha256 is"):
        read_checkpoint(tmp_path / "model")


def test_task_heads_are_left_out_and_named(random_network: Network, tmp_path: Path) -> None:
    tensors = random_network(**SMALL).state_dict()
    depth_model = {f"pretrained.{name}": tensor for name, tensor in tensors.items()}
    depth_model |= {"depth_head.projects.0.weight": torch.zeros(2, 3), "depth_head.projects.0.bias": torch.zeros(2)}
    torch.save(depth_model, tmp_path / "depth.pth")
    checkpoint, lost = convert(tmp_path / "depth.pth", tmp_path / "model", to="foveal")
    assert checkpoint.left_out == {"depth_head": 2}
    assert lost == ["what is not the backbone: depth_head (2 tensors)"]
    assert_equal(checkpoint.tensors, tensors)
    torch.save({**tensors, "head.weight": torch.zeros(5, 48)}, tmp_path / "classifier.pth")
    assert read_checkpoint(tmp_path / "classifier.pth").left_out == {"head": 1}


def test_reference_weights_come_through_the_door(golden: Path, tmp_path: Path) -> None:
    for stem, ffn, registers in (("backbone_mlp", "mlp", 0), ("backbone_swiglu_registers", "swiglu", 4)):
        stored = load_file(golden / f"{stem}.safetensors")
        weights = {name.removeprefix("weights."): t for name, t in stored.items() if name.startswith("weights.")}
        assert any(name.startswith("blocks.0.3.") for name in weights)
        save_file(weights, tmp_path / f"{stem}.safetensors")
        network, card = load_checkpoint(tmp_path / f"{stem}.safetensors")
        config = card.backbone
        assert (config.width, config.depth, config.num_heads, config.image_size) == (48, 4, 3, 518)
        assert (config.ffn, config.num_registers, config.patch_size) == (ffn, registers, 14)
        images = stored["98x98.input_div7"].repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)
        with torch.no_grad():
            torch.testing.assert_close(network(images).cls, stored["98x98.cls"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", ["vits", "vitb", "vitl", "vitg"])
@pytest.mark.parametrize("num_registers", [0, 4])
def test_public_networks_are_inferred_from_shapes(variant: str, num_registers: int) -> None:
    from foveal.backbone.infer import infer_config

    wanted = backbone_config(variant, num_registers=num_registers)
    with torch.device("meta"):
        tensors = VisionTransformer(wanted).state_dict()
    assert infer_config(tensors) == wanted


def test_card_says_where_the_weights_come_from(random_network: Network, tmp_path: Path) -> None:
    path = tmp_path / "dinov2_x.pth"
    torch.save(random_network(**SMALL).state_dict(), path)
    convert(path, tmp_path / "model", to="foveal")
    card = load_model(tmp_path / "model")[1]
    from foveal.files import sha256_of

    assert card.name == "dinov2_x"
    assert card.lineage == {
        "format": "official",
        "source": "dinov2_x.pth",
        "sha256": {"dinov2_x.pth": sha256_of(path)},
        "assumed": [
            "attention heads: 3, from the width (--num-heads says otherwise)",
            "image sizes: short side to 48, crop 42",
            "channel statistics: those of ImageNet",
        ],
        "converted_to": "foveal",
        "lost": [],
    }
    assert (card.crop_size, card.resize_size) == (42, 48)


def test_sizes_and_statistics_come_from_the_files_beside(random_network: Network, tmp_path: Path) -> None:
    save_model(tmp_path / "model", (network := random_network(**SMALL)), Card(name="x", backbone=network.config))
    for to in ("huggingface", "timm"):
        folder = tmp_path / to
        convert(tmp_path / "model", folder, to=to)
        plain = load_file(folder / "model.safetensors")
        save_file(plain, folder / "model.safetensors")  # without the card in its metadata
        card = read_checkpoint(folder).card
        assert (card.mean, card.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert (card.crop_size, card.resize_size) == ((224, 256) if to == "huggingface" else (42, 48))
    (tmp_path / "huggingface" / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# Model\n")
    assert "cc-by-nc-4.0" in str(read_checkpoint(tmp_path / "huggingface").card.licence).lower()


PLAIN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
CROP = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}


@pytest.mark.parametrize(
    ("given", "fields", "ignored"),
    [
        (CROP | {"rescale_factor": 1 / 255, "do_pad": False, "resample": 3}, {"crop_size": 28, "resize_size": 32}, []),
        (
            CROP | {"rescale_factor": 1.0},
            {"mean": [0.4 / 255, 0.5 / 255, 0.6 / 255], "std": [0.2 / 255, 0.25 / 255, 0.3 / 255]},
            [],
        ),
        (CROP | {"rescale_factor": 2 / 255}, {"mean": [0.2, 0.25, 0.3], "std": [0.1, 0.125, 0.15]}, []),
        (CROP | {"do_normalize": False, "image_mean": None}, {"mean": [0.0] * 3, "std": [1.0] * 3}, []),
        (CROP | {"do_normalize": False, "do_rescale": False}, {"mean": [0.0] * 3, "std": [1 / 255] * 3}, []),
        ({"crop_size": 28, "size": 32}, {"crop_size": 28, "resize_size": 32}, []),
        (
            CROP | {"do_center_crop": False},
            {"crop_size": 42, "resize_size": 48},
            ["do_center_crop False", "size {'shortest_edge': 32}", "crop_size {'height': 28, 'width': 28}"],
        ),
        (
            {"do_center_crop": False, "size": {"height": 28, "width": 28}},
            {"crop_size": 28, "resize_size": 28},
            ["do_center_crop False", "size {'height': 28, 'width': 28}"],
        ),
        (
            CROP | {"crop_size": {"height": 28, "width": 56}},
            {"crop_size": 42, "resize_size": 48},
            ["size {'shortest_edge': 32}", "crop_size {'height': 28, 'width': 56}"],
        ),
        (CROP | {"resample": 2, "rescale_offset": True}, {"crop_size": 28}, ["resample 2", "rescale_offset True"]),
    ],
)  # fmt: skip
def test_preprocessing_is_followed_or_told(
    random_network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict, fields: dict, ignored: list
) -> None:
    save_model(tmp_path / "model", (network := random_network(**SMALL)), Card(name="x", backbone=network.config))
    convert(tmp_path / "model", tmp_path / "hf", to="huggingface")
    path = tmp_path / "hf" / "model.safetensors"
    save_file(load_file(path), path)
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(PLAIN | given))
    checkpoint = read_checkpoint(tmp_path / "hf")
    for name, value in ({"mean": PLAIN["image_mean"], "std": PLAIN["image_std"]} | fields).items():
        assert getattr(checkpoint.card, name) == pytest.approx(value, rel=1e-12), name
    told = [text for text in checkpoint.assumed if text.startswith("ignored")]
    assert told == [f"ignored: the files say {text}, which a card does not hold" for text in ignored]
    assert caplog.text.count("features differ from those of the library") == len(ignored)
    shown = [text for name, text in diagnose(tmp_path / "hf").rows if name == "assumed"]
    assert shown == checkpoint.assumed


def test_preprocessing_that_the_card_in_the_weights_overrules_is_told(model: Callable, tmp_path: Path, caplog) -> None:
    source, _, card = model()
    convert(source, tmp_path / "hf", to="huggingface")
    assert read_checkpoint(tmp_path / "hf").assumed == []
    path = tmp_path / "hf" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.0, 0.0, 0.0]}))
    checkpoint = read_checkpoint(tmp_path / "hf")
    assert checkpoint.card.mean == card.mean
    text = "ignored: preprocessor_config.json is not that of the card in the weights, which is followed"
    assert checkpoint.assumed == [text]
    assert text in caplog.text


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"crop_size": {"height": "wide"}, "size": {"shortest_edge": 256}}),
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": [1, 1, 1]}),
        ("config.json", {"pretrained_cfg": {"input_size": 3}}),
        ("config.json", {"pretrained_cfg": {"input_size": [3, 42, 42], "crop_pct": 0}}),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    random_network: Network, tmp_path: Path, file: str, change: dict
) -> None:
    save_model(tmp_path / "model", (network := random_network(**SMALL)), Card(name="x", backbone=network.config))
    folder = tmp_path / "there"
    convert(tmp_path / "model", folder, to="timm" if file == "config.json" else "huggingface")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(WeightsError, match=r"the settings beside .*there make no sense"):
        read_checkpoint(folder)


def test_embedded_card_of_another_network_is_refused(model: Callable, tmp_path: Path) -> None:
    source, network, card = model()
    other = card.model_copy(update={"backbone": network.config.model_copy(update={"depth": 7})})
    for text, message in ((other.model_dump_json(), "describes another network"), ("{", "cannot be understood")):
        path = tmp_path / "x.safetensors"
        save_file(load_file(source / "model.safetensors"), path, metadata={"foveal_card": text})
        with pytest.raises(WeightsError, match=rf"the card in the metadata of .*x\.safetensors {message}"):
            read_checkpoint(path)


def test_heads_that_no_shape_shows_are_kept_or_asked_for(random_network: Network, tmp_path: Path) -> None:
    network = random_network(width=48, num_heads=4, **SMALL)
    save_model(tmp_path / "model", network, Card(name="x", backbone=network.config))
    for to in ("huggingface", "timm"):
        convert(tmp_path / "model", tmp_path / to, to=to)
        assert load_checkpoint(tmp_path / to)[1].backbone.num_heads == 4
    _, lost = convert(tmp_path / "model", tmp_path / "x.pth", to="official")
    assert "num_heads=4 (give --num-heads 4 to read the file again)" in lost
    assert any("attention heads: 3" in text for text in read_checkpoint(tmp_path / "x.pth").assumed)
    card = load_checkpoint(tmp_path / "x.pth", num_heads=4)[1]
    assert card.backbone.num_heads == 4
    assert "attention heads" not in str(card.lineage["assumed"])
    with pytest.raises(WeightsError, match="num_heads=3 was given, and the files say 4; leave it out"):
        load_checkpoint(tmp_path / "timm", num_heads=3)
    odd = random_network(width=40, num_heads=5, **SMALL)
    torch.save(odd.state_dict(), tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth: the width 40 is not a multiple of 64, .* give it \(--num-heads"):
        load_checkpoint(tmp_path / "odd.pth")
    assert load_checkpoint(tmp_path / "odd.pth", num_heads=5)[1].backbone.variant == "custom"


@pytest.mark.parametrize("to", ["huggingface", "timm", "foveal"])
def test_acceptance_of_terms_does_not_travel(model: Callable, tmp_path: Path, to: str) -> None:
    from foveal.backbone.card import Parent, read_card, require_permission, write_card
    from foveal.backbone.licence import NAMED, accept

    source, _, card = model()
    accepted = accept(NAMED["CC-BY-NC-4.0"], what="x", action="serve", name="CC-BY-NC-4.0")
    accepted = accepted.model_copy(update={"accepted": (accepted.accepted[0].model_copy(update={"by": "somebody"}),)})
    parent = Parent(name="p", licence=accepted, sha256={})
    card = card.model_copy(update={"licence": accepted, "parents": [parent]})
    write_card(source, card)
    convert(source, tmp_path / "there", to=to)
    assert not any(b"somebody" in path.read_bytes() for path in (tmp_path / "there").iterdir())
    if to != "foveal":  # as written before acceptances were left out
        path = tmp_path / "there" / "model.safetensors"
        save_file(load_file(path), path, metadata={"foveal_card": card.model_dump_json()})
    found = read_checkpoint(tmp_path / "there").card
    assert found.licence == NAMED["CC-BY-NC-4.0"]
    assert found.parents[0].licence == NAMED["CC-BY-NC-4.0"]
    with pytest.raises(LicenceError, match="serve of small"):
        require_permission(found, action="serve")
    assert read_card(source).licence == accepted  # the folder that it was given for keeps it


def test_parts_of_a_large_hugging_face_model_are_joined(model: Callable, tmp_path: Path) -> None:
    source, network, _ = model()
    convert(source, tmp_path / "hf", to="huggingface")
    whole = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": list(whole)[:9], "model-00002-of-00002.safetensors": list(whole)[9:]}
    for name, keys in parts.items():
        save_file({key: whole[key] for key in keys}, tmp_path / "hf" / name)
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in parts.items() for key in keys}}))
    checkpoint = read_checkpoint(tmp_path / "hf")
    assert_equal(checkpoint.tensors, network.state_dict())
    assert checkpoint.card.sha256.keys() == parts.keys()
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match=r"names elsewhere\.safetensors, which is not beside it"):
        read_checkpoint(tmp_path / "hf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 12}, r"num_hidden_layers is 12 in config\.json and 2 in the weights"),
        ({"num_register_tokens": 4}, r"num_register_tokens is 4 in config\.json and 0 in the weights"),
        ({"hidden_act": "relu"}, "hidden_act is relu, and only gelu is supported"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12, and only 1e-06 is supported"),
        ({"num_attention_heads": "six"}, "gives 'six' attention heads; expected a whole number above 0"),
        ({"num_attention_heads": 5}, "width=48 is not a multiple of num_heads=5"),
    ],
)
def test_config_of_another_network_is_refused(model: Callable, tmp_path: Path, change: dict, message: str) -> None:
    source, _, _ = model()
    convert(source, tmp_path / "hf", to="huggingface")
    save_file(load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "hf" / "model.safetensors")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path / "hf")
    path.write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json cannot be understood"):
        read_checkpoint(tmp_path / "hf")


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("norm.bias"), r"does not fit this network: missing norm\.bias"),
        (_without("cls_token"), "cls_token is missing|no DINOv2 backbone"),
        (lambda t: {**t, "extra": torch.zeros(2)}, "does not fit this network: unexpected extra"),
        (lambda t: {**t, "pos_embed": t["pos_embed"][:, :-1]}, "has 9 places, which is not 1 for the class token"),
        (lambda t: {**t, "norm.bias": torch.zeros(7)}, r"norm\.bias is \(7,\), expected \(48,\)"),
        (
            lambda t: {**t, "norm.bias": torch.full((48,), torch.nan)},
            r"NaN or infinite values in 1 of 35 .*\(norm\.bias",
        ),
        (lambda t: {**t, "norm.bias": torch.zeros(48, dtype=torch.int8)}, "norm.bias is int8; weights must be float16"),
        (lambda t: {**t, "patch_embed.proj.weight": torch.zeros(48, 3, 14, 7)}, "14 x 7 pixels; .* must be square"),
        (lambda t: {"a": t, "b": t}, r"holds 2 backbones \(a\., b\.\); save the one you mean"),
    ],
)
def test_what_does_not_fit_is_named(random_network: Network, tmp_path: Path, change: Callable, message: str) -> None:
    torch.save(change(dict(random_network(**SMALL).state_dict())), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path / "x.pth")


def test_places_without_a_checkpoint_are_explained(random_network: Network, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere does not exist; give a file of weights or the folder"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"is not a model folder: it has no model\.json"):
        read_checkpoint(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(random_network(**SMALL).state_dict(), tmp_path / name)
    with pytest.raises(WeightsError, match=r"holds 2 files of weights; give one of them, e\.g\. .*a\.pth"):
        read_checkpoint(tmp_path)
    (tmp_path / "b.pth").unlink()
    assert read_checkpoint(tmp_path).card.sha256.keys() == {"a.pth"}
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"is a distributed checkpoint .*\.dcp_to_torch_save first"):
        read_checkpoint(tmp_path / "dcp")


@pytest.mark.parametrize(
    ("out", "to", "message"),
    [
        ("new", "hugingface", "--to hugingface is not known; did you mean 'huggingface'"),
        ("new", "official", "an official checkpoint is one file; give new the ending .pth"),
        ("new.safetensors", "timm", "--to timm writes a folder; give it a name without .safetensors"),
        ("model", "foveal", "model exists; choose another place"),
        ("file/new", "huggingface", "file/new cannot be written"),
        ("file/new.pth", "official", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_explained(model: Callable, tmp_path: Path, out: str, to: str, message: str) -> None:
    source, _, _ = model()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=message):
        convert(source, tmp_path / out, to=to)
    assert sorted(tmp_path.rglob("*")) == before


def test_features_of_a_foreign_file_are_those_of_the_model_folder(model: Callable, tmp_path: Path) -> None:
    import foveal

    source, _, _ = model()
    convert(source, tmp_path / "hf", to="huggingface")
    picture = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    wanted = foveal.load(source).extract(picture)
    for path in (tmp_path / "hf", tmp_path / "hf" / "model.safetensors", source / "model.safetensors"):
        assert torch.equal(foveal.load(path).extract(picture).patches, wanted.patches)
