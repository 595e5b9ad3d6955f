"""dino.txt's published form against transformers' CLIP text model and tokenizer, and against plain arithmetic."""

import gzip
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.errors import FovealError, WeightsError
from foveal.features.dinotxt import open_dinotxt, read_vocabulary

pytest.importorskip("transformers")

from dinotxt_files import MERGES, WIDTH, clip_text_model, head_weights, write_dinotxt, write_vocabulary


def _head_by_hand(w: dict[str, Tensor], x: Tensor, *, num_registers: int) -> Tensor:
    """One head of 64, written out. x (B, N, D)."""
    for number in range(2):
        p = f"block_list.{number}."
        normed = F.layer_norm(x, (WIDTH,), w[p + "norm1.weight"], w[p + "norm1.bias"], eps=1e-5)
        q, k, v = (normed @ w[p + "attn.qkv.weight"].T).chunk(3, dim=-1)
        mixed = (q @ k.transpose(1, 2) / 8).softmax(-1) @ v
        x = x + w[p + "ls1.gamma"] * (mixed @ w[p + "attn.proj.weight"].T + w[p + "attn.proj.bias"])
        normed = F.layer_norm(x, (WIDTH,), w[p + "norm2.weight"], w[p + "norm2.bias"], eps=1e-5)
        first, second = (normed @ w[p + f"mlp.w{n}.weight"].T + w[p + f"mlp.w{n}.bias"] for n in (1, 2))
        hidden = F.silu(first) * second
        x = x + w[p + "ls2.gamma"] * (hidden @ w[p + "mlp.w3.weight"].T + w[p + "mlp.w3.bias"])
    x = F.layer_norm(x, (WIDTH,), w["ln_final.weight"], w["ln_final.bias"], eps=1e-5)
    return F.normalize(torch.cat([x[:, 0], x[:, 1 + num_registers :].mean(1)], dim=1), dim=1)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_dinotxt(tmp_path)


def test_texts_are_those_of_transformers(files: dict[str, Path], tmp_path: Path) -> None:
    found = open_dinotxt(**files, width=WIDTH)
    texts = ["a photo of the cat", "The DOG", "café  12"]
    tokenizer = read_vocabulary(files["vocabulary"])
    with torch.inference_mode():
        for text, vector in zip(texts, found.encode_texts(texts), strict=True):
            numbers = torch.tensor([tokenizer(text)["input_ids"]])
            expected = clip_text_model()(input_ids=numbers).text_embeds[0]
            torch.testing.assert_close(vector, F.normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_numbers_of_tokens_are_those_of_clip(tmp_path: Path) -> None:
    """Bytes first (in CLIP's order "!" is 0), then bytes that end a word, then merges, then start and end."""
    tokenizer = read_vocabulary(write_vocabulary(tmp_path / "merges.txt.gz"))
    first_merge, end = 2 * 256, 2 * 256 + len(MERGES) + 1
    assert tokenizer("the cat!")["input_ids"] == [end - 1, first_merge + 1, first_merge + 3, 256, end]
    assert tokenizer("b")["input_ids"] == [end - 1, 256 + ord("b") - ord("!"), end]
    assert len(tokenizer) == end + 1


def test_a_long_text_is_cut_and_keeps_its_end(files: dict[str, Path]) -> None:
    found = open_dinotxt(**files, width=WIDTH)
    long, longer = "the cat " * 10, "the cat " * 30
    vectors = found.encode_texts([long, longer, "the cat"])
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])


@pytest.mark.parametrize("num_registers", [0, 3])
def test_images_are_those_of_the_head_written_out(files: dict[str, Path], num_registers: int) -> None:
    x = torch.randn(2, 1 + num_registers + 5, WIDTH, generator=torch.Generator().manual_seed(2))
    tokens = Tokens(x[:, 0], x[:, 1 : 1 + num_registers], x[:, 1 + num_registers :])
    found = open_dinotxt(**files, width=WIDTH).encode_tokens(tokens)
    torch.testing.assert_close(found, _head_by_hand(head_weights(), x, num_registers=num_registers), atol=1e-5, rtol=0)


def test_files_that_do_not_fit_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"head.pth is for a backbone of width 64, and this one has 384"):
        open_dinotxt(**files, width=384)
    with pytest.raises(WeightsError, match=r"text.pth is no vision head of dino.txt: it holds backbone\.blocks"):
        open_dinotxt(**(files | {"vision_head": files["text_encoder"]}), width=WIDTH)
    with pytest.raises(WeightsError, match=r"head.pth is no text encoder of dino.txt"):
        open_dinotxt(**(files | {"text_encoder": files["vision_head"]}), width=WIDTH)
    with pytest.raises(WeightsError, match=r"head.pth is no vocabulary"):
        open_dinotxt(**(files | {"vocabulary": files["vision_head"]}), width=WIDTH)
    broken = head_weights()
    del broken["block_list.1.ls2.gamma"]
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match=r"broken.pth does not fit dino.txt: .*blocks.1.ls2.gamma"):
        open_dinotxt(**(files | {"vision_head": tmp_path / "broken.pth"}), width=WIDTH)
    (tmp_path / "other.gz").write_bytes(
        gzip.compress(b"#version\n" + b"\n".join(b"a" * n + b" a" for n in range(1, 901)))
    )
    with pytest.raises(WeightsError, match=r"other.gz has 1414 tokens and .*text.pth knows 524"):
        open_dinotxt(**(files | {"vocabulary": tmp_path / "other.gz"}), width=WIDTH)
    with pytest.raises(FovealError, match="no text to encode"):
        open_dinotxt(**files, width=WIDTH).encode_texts([])
