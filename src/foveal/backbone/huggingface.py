"""The layout of Hugging Face's `Dinov2Model` and `Dinov2WithRegistersModel`: key names, config, preprocessing.

Files use the names of the first releases (`attention.attention.query`); newer ones, which transformers 5 has in memory,
are read too. Query, key and value are the three row blocks of our qkv, so that splitting and joining is exact.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.errors import WeightsError

OUTER = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
NEWER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}
_ROWS = {"query": 0, "key": 1, "value": 2}
_FIXED = {
    "hidden_act": ("gelu", "gelu"),
    "layer_norm_eps": (1e-6, 1e-6),
    "mlp_ratio": (4, 4),
    "qkv_bias": (True, True),
}  # setting: (ours, the default of transformers)
_POSITION = "embeddings.position_embeddings"


def matches(names: set[str]) -> bool:
    """Whether these are the keys of a Hugging Face DINOv2 backbone."""
    return _POSITION in names and "embeddings.patch_embeddings.projection.weight" in names


def from_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names; what has no place in this layout keeps its name and fails the strict check.

    Raises:
        WeightsError: query, key or value of a block is missing.
    """
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    block = {theirs: ours for ours, theirs in BLOCK.items()}
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        stem, _, kind = name.rpartition(".")
        if not match:
            found[outer.get(name) or (f"{outer[stem]}.{kind}" if stem in outer else name)] = tensor
            continue
        part, _, kind = match[2].rpartition(".")
        part = NEWER.get(part, part)
        start = f"blocks.{match[1]}."
        if (row := _ROWS.get(part.removeprefix("attention.attention."))) is not None:
            joined.setdefault(f"{start}attn.qkv.{kind}", {})[row] = tensor
        elif part in ("mlp.gate_proj", "mlp.up_proj"):
            joined.setdefault(f"{start}mlp.w12.{kind}", {})[part == "mlp.up_proj"] = tensor
        elif match[2] in block:
            found[start + block[match[2]]] = tensor
        else:
            found[f"{start}{block[part]}.{kind}" if part in block else name] = tensor
    for name, parts in joined.items():
        count = 3 if ".qkv." in name else 2
        if len(parts) != count or len({(p.shape, p.dtype) for p in parts.values()}) != 1:
            raise WeightsError(f"the parts that make up {name} are incomplete or of different shapes")
        found[name] = torch.cat([parts[row] for row in range(count)])
    return found


def to_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under the names of Hugging Face's files."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            renamed[OUTER.get(name) or f"{OUTER[stem]}.{kind}"] = tensor
            continue
        _, i, part = name.split(".", 2)
        stem, _, kind = part.rpartition(".")
        start = f"encoder.layer.{i}."
        if stem == "attn.qkv":
            for letter, rows in zip(_ROWS, tensor.chunk(3), strict=True):
                renamed[f"{start}attention.attention.{letter}.{kind}"] = rows.clone()
        else:
            renamed[start + (BLOCK.get(part) or f"{BLOCK[stem]}.{kind}")] = tensor
    return renamed


def config_json(config: BackboneConfig, *, dtype: torch.dtype) -> dict[str, object]:
    """Return the `config.json` from which `AutoModel` builds this network."""
    kind = "dinov2_with_registers" if config.num_registers else "dinov2"
    return {
        "architectures": ["Dinov2WithRegistersModel" if config.num_registers else "Dinov2Model"],
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "layerscale_value": config.layerscale_init,
        "drop_path_rate": config.drop_path_rate,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{name: ours for name, (ours, _) in _FIXED.items()},
        **({"num_register_tokens": config.num_registers} if config.num_registers else {}),
    }


def preprocessor_json(*, mean: list[float], std: list[float], crop_size: int, resize_size: int) -> dict[str, object]:
    """Return the `preprocessor_config.json` of the same evaluation transform."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": resize_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": crop_size, "width": crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def check_config(given: Mapping[str, object], config: BackboneConfig) -> None:
    """Compare a `config.json` with the network that the tensors show.

    Raises:
        WeightsError: it describes another network, or one that computes something else; the message lists all.
    """
    shown = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "num_register_tokens": config.num_registers,
    }
    wrong = [f"{name} is {given[name]} in config.json and {shown[name]} in the weights" for name in shown
             if name in given and given[name] not in (shown[name], [shown[name]] * 2)]  # fmt: skip
    wrong += [
        f"{name} is {given[name]}, and only {ours} is supported"
        for name, (ours, default) in _FIXED.items()
        if given.get(name, default) != ours
    ]
    if wrong:
        raise WeightsError("config.json does not fit: " + "; ".join(wrong))
