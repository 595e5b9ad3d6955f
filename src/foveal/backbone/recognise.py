"""What a file or a set of tensor names is, where it is no DINOv2 backbone, and what to do then."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# First bytes (at an offset) of what is often found under the name of a checkpoint: offset, bytes, what to say.
_MAGIC: Sequence[tuple[int, bytes, str]] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the weights; run git lfs pull or download the file"),
    (0, b"\x93NUMPY", "is a NumPy array (.npy), not a checkpoint"),
    (0, b"\x89HDF", "is an HDF5 (Keras) file, which is not read here; convert it to safetensors first"),
    (0, b"GGUF", "is a GGUF file, which holds quantised language models"),
    (0, b"\x1f\x8b", "is compressed with gzip; unpack it first (gunzip)"),
    (0, b"\xfd7zXZ", "is compressed with xz; unpack it first (unxz)"),
    (0, b"BZh", "is compressed with bzip2; unpack it first (bunzip2)"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first (unzstd)"),
    (257, b"ustar", "is a tar archive; unpack it first (PyTorch's own tar format, before 0.2, is not read)"),
)  # fmt: skip
_TEXT = bytes(range(32, 127)) + b"\t\r\n"
_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|error)", re.IGNORECASE)

# Names that only one kind of other checkpoint has: pattern, what it is and what to do.
_OTHERS: Sequence[tuple[str, str]] = (
    (r"(^|\.)_?flat_param", "one shard of an FSDP checkpoint with flattened parameters; gather the full state dict in "
     "the program that wrote it, and save that"),
    (r"(^|\.)lora_[ABab]", "LoRA adapters without their backbone; merge them into it first"),
    (r"rope_embed|storage_tokens|bias_mask", "a DINOv3 network (rotary positions), another architecture; DINOv2 "
     "checkpoints have pos_embed"),
    (r"(^|\.)(text_model|transformer\.resblocks|logit_scale|class_embedding)", "a CLIP network, another architecture; "
     "use it through open_clip or transformers"),
    (r"(^|\.)decoder_pos_embed", "a masked autoencoder (MAE), a plain ViT without LayerScale, which is another "
     "architecture"),
    (r"relative_position_bias_table", "a Swin or BEiT network, another architecture"),
    (r"(^|\.)layernorm_before\.", "a plain ViT in Hugging Face's layout, without LayerScale: another architecture"),
    (r"(^|\.)blocks\.\d+\.gamma_1|(^|\.)downsample_layers\.|(^|\.)stages\.\d", "a ConvNeXt or other staged network, "
     "another architecture"),
    (r"(^|\.)layer\d\.\d+\.conv\d", "a ResNet, another architecture"),
)  # fmt: skip
_HEADS: Sequence[tuple[str, str]] = (
    (r"(^|\.)(dino_head|ibot_head)\.", "the self-supervised heads of a training run without a backbone"),
    (r"(^|\.)decode_head\.|(^|\.)depth_head\.", "a depth or segmentation head without its backbone"),
    (r"^(linear_?head\.|head\.|classifier\.|fc\.)?(weight|bias)$", "a linear classification head without its backbone"),
)
_LAYERSCALE = r"(^|\.)blocks\.\d+\.(\d+\.)?ls1\.gamma$|(^|\.)layer_scale1\.lambda1$"


def explain_file(path: Path, head: bytes) -> str:
    """Say what a file is that begins with `head` and is no checkpoint, as a sentence for an error."""
    if not head:
        return f"{path} is empty; the download or the copy did not finish: fetch it again"
    for offset, magic, what in _MAGIC:
        if head[offset:].startswith(magic):
            return f"{path} {what}"
    if _PAGE.match(head):
        return (
            f"{path} is a web page (an error or a login) saved under that name; look at the url and download it again"
        )
    if head.lstrip()[:1] in (b"{", b"["):
        return f"{path} is JSON text, not weights; give the file or the folder of the weights"
    if head.isascii() and (match := re.search(rb"[\w.-]+\.(pth|pt|safetensors)", head)):
        return f"{path} is text that names another file, {match[0].decode()}; give that one"
    if not head.strip(b"\0"):
        return f"{path} begins with zeros only: the download or the copy was interrupted; fetch it again"
    what = "it is text and begins" if not head.translate(None, _TEXT) else "it begins"
    return f"{path} is no file of weights that is known here ({what} with {head[:8]!r}); give a .pth or a .safetensors"


def explain_names(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say what checkpoint has these tensors and no DINOv2 backbone, and what to do: the end of "FILE holds ..."."""
    names = list(shapes)
    if not names:
        return "no tensors at all; save a state dict"
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in names):
            return what
    for pattern, what in _HEADS:
        if all(re.search(pattern, name) for name in names):
            sizes = ", ".join(f"{name} {shapes[name]}" for name in names[:2])
            return f"{what} ({sizes}); load the backbone, and this beside it"
    if any(re.search(r"(^|\.)blocks\.\d+\.", name) for name in names) and not any(
        re.search(_LAYERSCALE, name) for name in names
    ):
        return "a plain ViT without LayerScale (DINO, MAE, DeiT or supervised): another architecture"
    if all(re.search(r"exp_avg|momentum_buffer|(^|\.)step$", name) for name in names):
        return "the state of an optimizer without the weights; take the checkpoint of the model"
    return f"no DINOv2 backbone: {len(names)} tensors, among them {', '.join(names[:3])}"
