"""The Vision Transformer of DINOv2, with the numbers of the public weights.

State-dict keys are those of the official checkpoints (blocks not chunked).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.backbone.layers import Block, Group, StochasticDepth
from foveal.backbone.variants import BackboneConfig, multiple_of_patch
from foveal.errors import FovealError


class Tokens(NamedTuple):
    """Output tokens of one batch: cls (B, D), registers (B, R, D), patches (B, P, D) row-major on the grid."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class VisionTransformer(nn.Module):
    """A ViT with class token, optional registers, mask token, LayerScale and resizable positional embedding.

    Args:
        config: sizes and settings; see `BackboneConfig`.

    Attributes:
        recompute_blocks: keep only the input of each block for the backward pass of `forward_rows` and `intermediate`,
            and run the blocks again there (arXiv 1604.06174): the same gradients to the bit, a third more time, far
            less memory.

    Example:
        >>> from foveal.backbone.variants import backbone_config
        >>> vit = VisionTransformer(backbone_config("vit_nano", patch_size=14, image_size=70))
        >>> vit(torch.zeros(2, 3, 42, 28)).patches.shape
        torch.Size([2, 6, 48])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_blocks = False
        width = config.width
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(config.channels, width, kernel_size=config.patch_size, stride=config.patch_size)}
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid_size**2, width))
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                ffn=config.ffn,
                ffn_hidden=config.ffn_hidden,
                layerscale_init=config.layerscale_init,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> "VisionTransformer":
        """Draw the initial weights of the reference from `generator`, in a fixed order, and return self.

        Linear weights and the positional embedding: truncated normal, std 0.02; class and register tokens: normal,
        std 1e-6; mask token and biases: 0; patch embedding: uniform within 1/sqrt(fan_in), PyTorch's default.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif name.endswith((".ls1", ".ls2")):
                nn.init.constant_(module.gamma, self.config.layerscale_init)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        if self.config.num_registers:
            nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)
        return self

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: the class token and the registers."""
        return 1 + self.config.num_registers

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return (grid_h, grid_w) of a batch (B, C, H, W).

        Raises:
            FovealError: H or W is not a multiple of the patch size, or the channels are not the network's.
        """
        _, channels, height, width = images.shape
        patch = self.config.patch_size
        if channels != self.config.channels:
            raise FovealError(f"images have {channels} channels; this backbone takes {self.config.channels}")
        for name, size in (("image height", height), ("image width", width)):
            if size % patch or size == 0:
                raise FovealError(multiple_of_patch(name, size, patch) + " (resize or pad first)")
        return height // patch, width // patch

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tokens:
        """Return the tokens of the last block after the final norm.

        Args:
            images: (B, C, H, W) float, normalised; H and W multiples of the patch size.
            masks: (B, P) bool; True replaces the patch by the mask token.
        """
        return self.intermediate(images, [self.config.depth - 1], masks=masks)[0]

    def intermediate(
        self,
        images: Tensor,
        layers: int | Sequence[int],
        *,
        norm: bool = True,
        masks: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Tokens]:
        """Return the tokens after chosen blocks, in ascending order of the blocks.

        Args:
            images: (B, C, H, W) float, normalised.
            layers: the last n blocks, or a list of block numbers from 0.
            norm: apply the final norm to each.
            masks: (B, P) bool or None.
            generator: source of the stochastic-depth draws; None switches stochastic depth off.
        """
        wanted = self.layer_numbers(layers)
        x, groups = self.embed([images], [masks])
        depth = self._stochastic_depth(generator, groups)
        found = []
        for i, block in enumerate(self.blocks[: wanted[-1] + 1]):
            drops = (depth.draw(x.device), depth.draw(x.device)) if depth else None
            x = self._run(block)(x, groups, drops=drops)
            if i in wanted:
                found.append(self._split(self.norm(x) if norm else x, groups[0]))
        return found

    def attention(self, images: Tensor, *, layer: int = -1, queries: Sequence[int] | None = None) -> Tensor:
        """Return the attention weights of one block: softmax(q k^T / sqrt(head_dim)) over all tokens.

        The weights of no other block are formed, and the later blocks do not run. Those of all N tokens take
        B heads N^2 numbers; at high resolution ask for the few that are looked at. They are computed in float32 (or
        float64, if the parameters are) also under autocast.

        Args:
            images: (B, C, H, W) float, normalised.
            layer: number of the block from 0, or from the end: -1 is the last.
            queries: the tokens whose attention is wanted, as positions: 0 is the class token, then come the registers,
                then the patches row by row; None is all of them.

        Returns:
            (B, heads, Q, N), Q the number of queries; each row sums to 1.

        Raises:
            FovealError: a layer or a position that the network does not have.
        """
        depth = self.config.depth
        if not -depth <= layer < depth:
            raise FovealError(
                f"layer={layer} of a backbone with {depth} blocks; choose 0..{depth - 1}, or -{depth}..-1 from the end"
            )
        x, groups = self.embed([images], [None])
        num_tokens = groups[0].num_tokens
        if queries is not None and not all(0 <= position < num_tokens for position in queries):
            raise FovealError(f"queries={list(queries)} of {num_tokens} tokens; choose positions 0..{num_tokens - 1}")
        chosen: Block = self.blocks[layer]  # type: ignore[assignment]
        for block in self.blocks[: layer % depth]:
            x = block(x, groups)
        with torch.autocast(x.device.type, enabled=False):
            return chosen.attn.weights(chosen.norm1(x), groups[0], queries=queries)

    def layer_numbers(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of chosen blocks, ascending: the last n, or those of a list.

        Raises:
            FovealError: none, or one that the network does not have.
        """
        return layer_numbers(layers, depth=self.config.depth)

    def forward_rows(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        rows: Tensor,
        *,
        generator: torch.Generator | None = None,
        absent: Sequence[Group] = (),
    ) -> Tensor:
        """Return chosen packed tokens of several batches after the final norm: what the objective reads, and no more.

        The last block's feed-forward and the final norm run on `rows` alone; the values are those of a full forward.

        Args:
            images: batches (B_g, C, H_g, W_g) of any sizes.
            masks: for each batch (B_g, P_g) bool or None.
            rows: (R,) int64 into the packed tokens; see `packed_rows`.
            generator: source of the stochastic-depth draws; None switches stochastic depth off.
            absent: shapes of further batches, for which draws are made all the same, so that those of `images` are as
                in a pass with all of them.

        Returns:
            (R, D).
        """
        x, groups = self.embed(images, masks)
        depth = self._stochastic_depth(generator, groups, absent=absent)
        for i, block in enumerate(self.blocks):
            chosen = rows if i == len(self.blocks) - 1 else None
            drops = (depth.draw(x.device), depth.draw(x.device, rows=chosen)) if depth else None
            x = self._run(block)(x, groups, drops=drops, rows=chosen)
        return self.norm(x)

    def embed(self, images: Sequence[Tensor], masks: Sequence[Tensor | None]) -> tuple[Tensor, list[Group]]:
        """Turn batches of images into packed tokens: patch embedding, masks, class token, position, registers."""
        grids = [self.grid_of(batch) for batch in images]
        width, patch = self.config.width, self.config.patch_size
        projection = self.patch_embed["proj"]
        pixels = torch.cat([_patchify(batch, patch) for batch in images])
        patches = F.linear(pixels, projection.weight.flatten(1), projection.bias)  # type: ignore[operator,arg-type]
        packed, groups = [], []
        parts = patches.split([len(b) * h * w for b, (h, w) in zip(images, grids, strict=True)])
        for part, batch, mask, (grid_h, grid_w) in zip(parts, images, masks, grids, strict=True):
            # In the parameters' type, so that the residual stream stays fp32 under bf16 autocast: LayerScale starts
            # at 1e-5, and a branch that small is lost in bf16's rounding of the stream.
            x = part.view(len(batch), grid_h * grid_w, width).to(self.pos_embed.dtype)
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_token, x)
            cls_pos, patch_pos = self.position(grid_h, grid_w)
            cls = (self.cls_token + cls_pos).expand(len(x), -1, -1)
            prefix = [cls, self.register_tokens.expand(len(x), -1, -1)] if self.config.num_registers else [cls]
            packed.append(torch.cat([*prefix, x + patch_pos], dim=1).flatten(0, 1))
            groups.append(Group(len(batch), self.num_prefix_tokens + grid_h * grid_w))
        return torch.cat(packed), groups

    def position(self, grid_h: int, grid_w: int) -> tuple[Tensor, Tensor]:
        """Return the positional embedding (1, 1, D) of the class token and (1, P, D) of a grid of patches.

        Two ways of resizing, as the public weights were trained: "offset" (without registers) gives bicubic
        interpolation the scale factors (h + 0.1) / G, (w + 0.1) / G, so that source coordinates are a little off those
        of a plain resize; "antialias" (with registers) resizes to the grid with an antialiased kernel.
        """
        side = self.config.grid_size
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (grid_h, grid_w) == (side, side):
            return cls, patches
        grid = patches.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        if self.config.resize_mode == "antialias":
            grid = F.interpolate(grid, size=(grid_h, grid_w), mode="bicubic", antialias=True)
        else:
            factor = ((grid_h + 0.1) / side, (grid_w + 0.1) / side)
            grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", recompute_scale_factor=False)
        return cls, grid.permute(0, 2, 3, 1).reshape(1, grid_h * grid_w, -1).to(self.pos_embed.dtype)

    def _run(self, block: nn.Module) -> Callable[..., Tensor]:
        if self.recompute_blocks and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        return block

    def _stochastic_depth(
        self, generator: torch.Generator | None, groups: list[Group], *, absent: Sequence[Group] = ()
    ) -> StochasticDepth | None:
        rate = self.config.drop_path_rate
        return StochasticDepth(rate, generator, groups, absent=absent) if generator is not None and rate > 0 else None

    def _split(self, x: Tensor, group: Group) -> Tokens:
        x = x.view(group.num_images, group.num_tokens, -1)
        prefix = self.num_prefix_tokens
        return Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:])


def layer_numbers(layers: int | Sequence[int], *, depth: int, what: str = "a backbone") -> tuple[int, ...]:
    """Return the numbers of chosen blocks among `depth`, ascending: the last n, or those of a list.

    Raises:
        FovealError: none, or one that `what` does not have.

    Example:
        >>> layer_numbers(2, depth=12), layer_numbers([7, 3, 7], depth=12)
        ((10, 11), (3, 7))
    """
    wanted = set(range(depth - layers, depth)) if isinstance(layers, int) else set(layers)
    if not wanted or min(wanted) < 0 or max(wanted) >= depth:
        raise FovealError(f"layers={layers} of {what} with {depth} blocks; choose among 0..{depth - 1}")
    return tuple(sorted(wanted))


def _patchify(images: Tensor, patch: int) -> Tensor:
    """Rearrange (B, C, H, W) into one row a patch (B P, C patch patch), the order of a convolution's weights."""
    b, c, h, w = images.shape
    tiles = images.view(b, c, h // patch, patch, w // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * patch * patch)
