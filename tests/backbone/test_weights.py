import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import CARD, HEADS, WEIGHTS, Card, check_tensors, load_model, load_tensors, save_model
from foveal.errors import WeightsError

Network = Callable[..., VisionTransformer]


@pytest.fixture
def network(random_network: Network) -> VisionTransformer:
    return random_network(num_registers=2, image_size=28, patch_size=14)


@pytest.fixture
def card(network: VisionTransformer) -> Card:
    return Card(name="nano", backbone=network.config, crop_size=28, resize_size=32, lineage={"seed": 0})


@pytest.fixture
def folder(network: VisionTransformer, card: Card, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", network, card)
    return tmp_path / "model"


def test_round_trip_is_exact(network: VisionTransformer, card: Card, tmp_path: Path) -> None:
    heads = {"dino_head.weight": torch.randn(3, 5)}
    written = save_model(tmp_path / "model", network, card, heads=heads)
    loaded, read = load_model(tmp_path / "model")
    assert read == written
    assert read.model_copy(update={"sha256": {}}) == card
    assert set(read.sha256) == {WEIGHTS, HEADS}
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(load_tensors(tmp_path / "model" / HEADS)["dino_head.weight"], heads["dino_head.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing temporary is left


def test_saving_again_replaces_the_model_folder(
    folder: Path, card: Card, random_network: Network, network: VisionTransformer
) -> None:
    other = random_network(num_registers=2, image_size=28, seed=1)
    save_model(folder, other, card)
    loaded = load_model(folder)[0]
    assert torch.equal(loaded.cls_token, other.cls_token)
    assert not torch.equal(loaded.cls_token, network.cls_token)


def test_flipped_byte_is_named(folder: Path) -> None:
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged: its sha256 is [0-9a-f]{64}"):
        load_model(folder)
    load_model(folder, verify=False)


def test_missing_hash_is_named(folder: Path) -> None:
    path = folder / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": {}}))
    with pytest.raises(
        WeightsError, match=r"model\.json has no sha256 for model\.safetensors, .*copy the model folder"
    ):
        load_model(folder)
    load_model(folder, verify=False)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_cut_file_is_named(folder: Path, keep: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        load_model(folder, verify=False)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"has a card but no model\.safetensors; copy the whole model folder"):
        load_model(folder)


def test_wrong_folder_says_where_the_model_is(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not a model folder: it has no model\.json; did you mean .*model\?"):
        load_model(folder.parent)
    with pytest.raises(WeightsError, match="give the folder that holds"):
        load_model(folder.parent / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"flavour": 1}, "flavour"), ({"backbone": {"variant": "vit_nano", "dpeth": 3}}, "dpeth")],
)
def test_card_with_an_unknown_key_is_refused(folder: Path, change: dict, message: str) -> None:
    path = folder / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=rf"model\.json cannot be understood: (?s:.*){message}"):
        load_model(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]"])
def test_damaged_card_is_named(folder: Path, text: bytes) -> None:
    (folder / CARD).write_bytes(text)
    with pytest.raises(WeightsError, match=r"model\.json cannot be understood: [^\n]+; copy or download it again$"):
        load_model(folder)


def test_weights_that_do_not_fit_the_card_are_listed(folder: Path) -> None:
    path = folder / CARD
    values = json.loads(path.read_text())
    values["backbone"] |= {"depth": 4, "num_registers": 0}
    path.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"does not fit this network: missing blocks\.3\..* and \d+ more"):
        load_model(folder)


def test_wrong_names_and_shapes_are_told_apart() -> None:
    found = {"a": torch.zeros(2), "c": torch.zeros(1)}
    wanted = {"a": torch.zeros(3), "b": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"x does not fit .* missing b; unexpected c; a is \(2,\), expected \(3,\)"):
        check_tensors(found, wanted, where="x")


def test_saving_over_something_else_is_refused(network: VisionTransformer, card: Card, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(WeightsError, match="exists and is not a model folder; choose another place or remove it"):
        save_model(photos, network, card)
    assert (photos / "cat.jpg").read_bytes() == b"meow"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
