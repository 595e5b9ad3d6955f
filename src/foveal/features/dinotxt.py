"""dino.txt: a text encoder and a vision head that put class names and frozen features into one space.

Source: arXiv 2412.16334, and the published weights for ViT-L/14 with 4 registers: the vision head, the text encoder,
and the vocabulary of CLIP (arXiv 2103.00020), which come as three files and are opened as such.

Legend: B images, T texts, N tokens, D width of the backbone, E width of the common space.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.backbone.containers import read_container
from foveal.backbone.layers import Block, Group
from foveal.backbone.vit import Tokens
from foveal.errors import FovealError, WeightsError

_Part = TypeVar("_Part", bound=nn.Module)

_NORM_EPS = 1e-5  # of both parts; a backbone's is 1e-6
_VISION_HEAD_DIM = 64
_TEXT_HEAD_DIM = 64
_NUM_MERGES = 49152 - 256 - 2  # that CLIP uses of its file
_START, _END = "<|startoftext|>", "<|endoftext|>"


class VisionHead(nn.Module):
    """Blocks over all tokens of a frozen backbone, a norm, and the class token beside the mean patch.

    Args:
        width: D.
        num_blocks: 2 as published.
        hidden: of the SwiGLU; 2752 for width 1024 as published.
    """

    def __init__(self, width: int, *, num_blocks: int, hidden: int) -> None:
        super().__init__()
        heads = width // _VISION_HEAD_DIM
        self.blocks = nn.ModuleList(
            Block(width, heads, ffn="swiglu", ffn_hidden=hidden, layerscale_init=1.0) for _ in range(num_blocks)
        )
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = _NORM_EPS  # type: ignore[union-attr]
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, 2 D), not normalised, from the tokens of the last block after the backbone's norm."""
        x = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
        group = Group(*x.shape[:2])
        packed = x.flatten(0, 1)
        for block in self.blocks:
            packed = block(packed, [group])
        x = self.norm(packed).view(x.shape)
        return torch.cat([x[:, 0], x[:, 1 + tokens.registers.shape[1] :].mean(dim=1)], dim=1)


class TextEncoder(nn.Module):
    """Causal blocks over the tokens of a text, a norm, and the last token projected into the common space.

    Args:
        vocabulary: number of tokens; 49408.
        context: longest text, in tokens; 77.
        width: 1280 as published.
        depth: 24 as published.
        output: E.
    """

    def __init__(self, vocabulary: int, context: int, width: int, *, depth: int, output: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                width // _TEXT_HEAD_DIM,
                4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=_NORM_EPS,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.projection = nn.Linear(width, output, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (T, E), not normalised. tokens (T, N) int64, padded with 0; the end token has the largest number."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        ends = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return self.projection(self.norm(ends))


class DinoText:
    """Both parts of dino.txt on a frozen backbone: unit vectors whose cosine says how well text and image fit.

    Args:
        vision_head: over the backbone's tokens.
        text_encoder: see `TextEncoder`.
        tokenizer: CLIP's; see `read_vocabulary`.
    """

    def __init__(self, vision_head: VisionHead, text_encoder: TextEncoder, tokenizer: Any) -> None:
        self.vision_head, self.text_encoder = vision_head.eval(), text_encoder.eval()
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tokens) -> Tensor:
        """Return unit vectors (B, E) of images, given the backbone's last tokens after its norm."""
        return F.normalize(self.vision_head(tokens), dim=1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Return unit vectors (T, E) of texts. One that is longer than the context is cut, its end token kept."""
        if not texts:
            raise FovealError("no text to encode; give at least one")
        context = len(self.text_encoder.positional_embedding)
        rows = torch.zeros(len(texts), context, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = self.tokenizer(text)["input_ids"]
            if len(numbers) > context:
                numbers = [*numbers[: context - 1], numbers[-1]]
            row[: len(numbers)] = torch.tensor(numbers)
        found = [self.text_encoder(part) for part in rows.split(batch_size)]
        return F.normalize(torch.cat(found), dim=1)


def open_dinotxt(*, vision_head: Path, text_encoder: Path, vocabulary: Path, width: int) -> DinoText:
    """Open the three published files; all sizes are read from the weights.

    Args:
        vision_head: weights of the head, .pth or .safetensors.
        text_encoder: weights of the text encoder.
        vocabulary: CLIP's `bpe_simple_vocab_16e6.txt.gz`.
        width: of the backbone.

    Raises:
        WeightsError: a file is not what it should be, or of another width.
    """
    head = _open_vision_head(vision_head)
    if (found := head.norm.normalized_shape[0]) != width:
        raise WeightsError(f"{vision_head} is for a backbone of width {found}, and this one has {width}; open that one")
    text = _open_text_encoder(text_encoder)
    if text.projection.out_features != 2 * width:
        raise WeightsError(
            f"{text_encoder} projects to {text.projection.out_features} and {vision_head} gives {2 * width}; "
            "the two files do not belong together"
        )
    tokenizer = read_vocabulary(vocabulary)
    if len(tokenizer) > text.token_embedding.num_embeddings:
        raise WeightsError(
            f"{vocabulary} has {len(tokenizer)} tokens and {text_encoder} knows {text.token_embedding.num_embeddings}; "
            "give the vocabulary that the encoder was trained with"
        )
    return DinoText(head, text, tokenizer)


def read_vocabulary(path: Path) -> Any:
    """Return CLIP's tokenizer from its published file: a header, then one merge of two tokens a line, gzipped.

    Raises:
        FovealError: transformers is not installed.
        WeightsError: the file is something else.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise FovealError(
            f"CLIP's tokenizer comes with transformers ({error}); pip install 'foveal[foreign]'"
        ) from None
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is no vocabulary ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz") from None
    merges = [line.split() for line in lines[1 : 1 + _NUM_MERGES] if line.strip()]
    if not merges or any(len(pair) != 2 for pair in merges):
        raise WeightsError(f"{path} is no list of merges; give CLIP's bpe_simple_vocab_16e6.txt.gz")
    letters = _letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    numbers = {word: number for number, word in enumerate(words)}
    try:
        return CLIPTokenizer(vocab=numbers, merges=[(left, right) for left, right in merges])  # type: ignore[misc]
    except Exception as error:  # tokenizers raises nothing more special
        raise WeightsError(f"{path} is no vocabulary ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz") from None


def _letters() -> list[str]:
    """Return the character that stands for each byte, in CLIP's order: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


def _open_vision_head(path: Path) -> VisionHead:
    named = read_container(path).tensors
    numbers = {int(name.split(".")[1]) for name in named if name.startswith("block_list.")}
    if not numbers or "ln_final.weight" not in named or "block_list.0.mlp.w1.weight" not in named:
        raise WeightsError(f"{path} is no vision head of dino.txt: it holds {', '.join(sorted(named)[:4])}, ...")
    hidden, width = named["block_list.0.mlp.w1.weight"].shape
    state = {"norm.weight": named.pop("ln_final.weight"), "norm.bias": named.pop("ln_final.bias")}
    for number in numbers:
        old, new = f"block_list.{number}", f"blocks.{number}"
        for kind in ("weight", "bias"):
            state[f"{new}.mlp.w12.{kind}"] = torch.cat([named.pop(f"{old}.mlp.w{part}.{kind}") for part in (1, 2)])
        state[f"{new}.attn.qkv.bias"] = torch.zeros(3 * width)  # the head has none
    state |= {name.replace("block_list.", "blocks."): tensor for name, tensor in named.items()}
    return _filled(VisionHead(width, num_blocks=len(numbers), hidden=hidden), state, path)


def _open_text_encoder(path: Path) -> TextEncoder:
    named = read_container(path).tensors
    prefix = "backbone."
    if f"{prefix}token_embedding.weight" not in named or "head.linear_projection.weight" not in named:
        raise WeightsError(f"{path} is no text encoder of dino.txt: it holds {', '.join(sorted(named)[:4])}, ...")
    (vocabulary, width), context = (
        named[f"{prefix}token_embedding.weight"].shape,
        len(named[f"{prefix}positional_embedding"]),
    )
    depth = len({name.split(".")[2] for name in named if name.startswith(f"{prefix}blocks.")})
    projection = named.pop("head.linear_projection.weight")
    state = {"projection.weight": projection}
    renamed = {
        "ln_final.": "norm.", "attention_norm.": "norm1.", "attention.qkv.": "self_attn.in_proj_",
        "attention.proj.": "self_attn.out_proj.", "ffn_norm.": "norm2.", "feed_forward.fc1.": "linear1.",
        "feed_forward.fc2.": "linear2.",
    }  # fmt: skip
    for name, tensor in named.items():
        new = name.removeprefix(prefix)
        for old_part, new_part in renamed.items():
            new = new.replace(old_part, new_part)
        state[new] = tensor
    for number in range(depth):  # queries, keys and values have no bias
        state.setdefault(f"blocks.{number}.self_attn.in_proj_bias", torch.zeros(3 * width))
    return _filled(TextEncoder(vocabulary, context, width, depth=depth, output=len(projection)), state, path)


def _filled(part: _Part, state: dict[str, Tensor], path: Path) -> _Part:
    try:
        part.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit dino.txt: {str(error).splitlines()[-1].strip()}") from None
    return part.requires_grad_(False)
