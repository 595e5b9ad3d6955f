"""Files in the published form of dino.txt, with random weights."""

import gzip
from pathlib import Path

import torch
import transformers
from torch import Tensor

WIDTH, TEXT_WIDTH, DEPTH, CONTEXT, HIDDEN = 64, 128, 2, 16, 96
MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "d o", "do g</w>", "o f</w>", "p h", "ph o", "pho t"]


def write_vocabulary(path: Path) -> Path:
    path.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()))
    return path


def clip_text_model() -> transformers.CLIPTextModelWithProjection:
    """CLIP's text model is dino.txt's, but for the biases of queries, keys and values, which are 0 here."""
    config = transformers.CLIPTextConfig(
        vocab_size=2 * 256 + len(MERGES) + 2, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=DEPTH, num_attention_heads=TEXT_WIDTH // 64, max_position_embeddings=CONTEXT,
        hidden_act="gelu", projection_dim=2 * WIDTH, layer_norm_eps=1e-5, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3 if "embedding" in name else 0.1).add_(
                1.0 if "norm" in name and "weight" in name else 0
            )
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                parameter.zero_()
    return model


def write_text_encoder(model: transformers.CLIPTextModelWithProjection, path: Path) -> Path:
    own = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    named = {
        "backbone.token_embedding.weight": own["embeddings.token_embedding.weight"],
        "backbone.positional_embedding": own["embeddings.position_embedding.weight"],
        "head.linear_projection.weight": own["text_projection.weight"],
    }
    for kind in ("weight", "bias"):
        named[f"backbone.ln_final.{kind}"] = own[f"final_layer_norm.{kind}"]
        for number in range(DEPTH):
            there, here = f"encoder.layers.{number}", f"backbone.blocks.{number}"
            for new, old in {
                "attention_norm": "layer_norm1", "attention.proj": "self_attn.out_proj", "ffn_norm": "layer_norm2",
                "feed_forward.fc1": "mlp.fc1", "feed_forward.fc2": "mlp.fc2",
            }.items():  # fmt: skip
                named[f"{here}.{new}.{kind}"] = own[f"{there}.{old}.{kind}"]
            parts = [own[f"{there}.self_attn.{part}_proj.weight"] for part in "qkv"]
            named[f"{here}.attention.qkv.weight"] = torch.cat(parts)
    torch.save(named, path)
    return path


def head_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int, mean: float = 0.0) -> Tensor:
        return mean + 0.2 * torch.randn(shape, generator=generator)

    named = {"ln_final.weight": drawn(WIDTH, mean=1.0), "ln_final.bias": drawn(WIDTH)}
    for number in range(2):
        block = {
            "norm1.weight": drawn(WIDTH, mean=1.0), "norm1.bias": drawn(WIDTH),
            "attn.qkv.weight": drawn(3 * WIDTH, WIDTH), "attn.proj.weight": drawn(WIDTH, WIDTH),
            "attn.proj.bias": drawn(WIDTH), "ls1.gamma": drawn(WIDTH, mean=1.0),
            "norm2.weight": drawn(WIDTH, mean=1.0), "norm2.bias": drawn(WIDTH),
            "mlp.w1.weight": drawn(HIDDEN, WIDTH), "mlp.w1.bias": drawn(HIDDEN),
            "mlp.w2.weight": drawn(HIDDEN, WIDTH), "mlp.w2.bias": drawn(HIDDEN),
            "mlp.w3.weight": drawn(WIDTH, HIDDEN), "mlp.w3.bias": drawn(WIDTH), "ls2.gamma": drawn(WIDTH, mean=1.0),
        }  # fmt: skip
        named |= {f"block_list.{number}.{name}": tensor for name, tensor in block.items()}
    return named


def write_dinotxt(folder: Path) -> dict[str, Path]:
    """Write the three files and return them by the names of `open_dinotxt`."""
    torch.save(head_weights(), folder / "head.pth")
    return {
        "vision_head": folder / "head.pth",
        "text_encoder": write_text_encoder(clip_text_model(), folder / "text.pth"),
        "vocabulary": write_vocabulary(folder / "merges.txt.gz"),
    }
