"""What a user may call a model, and what the card then says of where it came from."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_server import FakeServer

import foveal
from foveal.backbone.hub import APACHE, CHECKPOINTS, Checkpoint
from foveal.backbone.source import open_backbone, peek_card
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.errors import DownloadError, WeightsError


@pytest.fixture
def network(random_network: Callable[..., VisionTransformer]) -> VisionTransformer:
    return random_network(image_size=28, patch_size=14)


@pytest.fixture
def data(network: VisionTransformer) -> bytes:
    """The network as an official .pth file."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def row(data: bytes, server: FakeServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A row of the table for that file, which a mirror has."""
    row = Checkpoint(
        name="nano14",
        kind="backbone",
        parameters=1,
        patch_size=14,
        licence=APACHE,
        url="https://x.org/nano14_pretrain.pth",
        source="https://x.org",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        hash_source="independent",
    )
    monkeypatch.setitem(CHECKPOINTS, "nano14", row)
    monkeypatch.setenv("FOVEAL_MIRROR", server.url)
    server.files["/nano14_pretrain.pth"] = data
    return row


def test_known_name_is_fetched_once_and_its_card_tells_where_from(
    row: Checkpoint, network: VisionTransformer, server: FakeServer
) -> None:
    backbone, card = open_backbone("nano14")
    assert torch.equal(backbone.pos_embed, network.pos_embed)
    assert (card.name, card.licence) == ("nano14", APACHE)
    origin = card.lineage["downloaded"]
    assert (origin["url"], origin["sha256"]) == (row.url, row.sha256)
    assert "independent projects" in origin["verified"]
    images = torch.zeros(1, 28, 28, 3, dtype=torch.uint8).numpy()
    assert foveal.load("nano14").extract(list(images)).cls.shape == (1, network.config.width)
    assert len(server.requests) == 1


def test_known_file_under_another_name_is_recognised_by_its_hash(row: Checkpoint, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.pth").write_bytes(data)
    card = open_backbone(tmp_path / "my.pth")[1]
    assert (card.name, card.licence) == ("nano14", APACHE)
    (tmp_path / "my.pth").write_bytes(data + b"\0")  # a zip file with one byte more is another file, if a valid one
    with pytest.raises(WeightsError, match=r"my\.pth"):
        open_backbone(tmp_path / "my.pth")


def test_file_of_that_name_comes_before_the_table(
    row: Checkpoint, data: bytes, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nano14").write_bytes(data)
    assert "downloaded" not in open_backbone("nano14")[1].lineage
    assert server.requests == []


def test_url_is_fetched_and_its_licence_stays_unknown(server: FakeServer, home: Path, data: bytes) -> None:
    server.files["/x.pth"] = data
    card = open_backbone(f"{server.url}/x.pth")[1]
    assert card.licence.terms == "unknown"
    assert "unverified: no sha256 is published; pinned" in card.lineage["downloaded"]["verified"]


def test_head_is_not_a_backbone(home: Path) -> None:
    with pytest.raises(
        DownloadError, match="is a depth head, which has no backbone to load; load its backbone, 'dinov2_vits14'"
    ):
        open_backbone("dinov2_vits14_nyu_dpt_head")


def test_unknown_name_names_the_nearest(home: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"dinov2_vit14 is no file or folder here .*; did you mean 'dinov2_vit[a-z]14'\?"
    ):
        open_backbone("dinov2_vit14")


def test_heads_that_only_the_caller_knows_reach_the_network(row: Checkpoint, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    for source in (tmp_path / "x.pth", "nano14"):
        assert open_backbone(source, num_heads=16)[0].config.num_heads == 16
    assert foveal.load(tmp_path / "x.pth", num_heads=16).card.backbone.num_heads == 16


def test_card_is_known_before_the_weights(network: VisionTransformer, tmp_path: Path) -> None:
    save_model(tmp_path / "model", network, Card(name="x", backbone=network.config))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert (found := peek_card(path)) is not None
        assert found.backbone == network.config
    assert (known := peek_card("dinov2_vits14_reg")) is not None
    assert (known.backbone.width, known.backbone.num_registers) == (384, 4)
    assert peek_card("dinov2_vits14_nyu_dpt_head") is None
    assert peek_card(tmp_path) is None
