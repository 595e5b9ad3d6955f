"""What can be searched: rows that are read in blocks or by number, and never held whole.

Shapes: N rows, D width.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError

# A block of rows should stay in a CPU's cache, where it is read three times; a GPU wants larger ones.
BLOCK_BYTES = {"cpu": 2 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 128 * 2**20
_BLOCK_MULTIPLE = 64  # rows
_SHORTEST, _LONGEST = 1e-12, 1e18  # lengths whose squares float32 can hold with all their digits


class Database:
    """Rows to search in, read in blocks or by number.

    Args:
        num_rows: N.
        width: D.
        blocks: called with a number of rows, gives the whole database in order in blocks of that many, (b, D) float32;
            a block may be overwritten when the next is asked for.
        read: called with row numbers (m,) int64 in rising order, gives these rows, (m, D) float.

    Example:
        >>> Database.of_array(np.eye(3, dtype=np.float16)).num_rows
        3
    """

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        blocks: Callable[[int], Iterator[Tensor]],
        read: Callable[[np.ndarray], Tensor],
    ) -> None:
        self.num_rows = num_rows
        self.width = width
        self.blocks = blocks
        self.read = read
        self._inverse_lengths: Tensor | None = None

    @classmethod
    def of_array(cls, array: np.ndarray | Tensor) -> "Database":
        """Search in an array (N, D) of any float type; a memory map is read as the search goes, never whole.

        A tensor may lie on a GPU; then nothing is copied there when the search runs on it.
        """
        floating = array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"
        if array.ndim != 2 or not floating or array.shape[1] == 0:
            raise FovealError(f"a database {tuple(array.shape)} of {array.dtype}; give (rows, width) of a float type")

        # By DLPack a map that is read-only is taken without a copy.
        rows = array if isinstance(array, Tensor) else torch.from_dlpack(array)

        def blocks(size: int) -> Iterator[Tensor]:
            widened = None  # one buffer: fresh memory for each block costs more than the widening
            for block in rows.split(size) if len(rows) else ():
                if block.dtype == torch.float32:
                    yield block
                    continue
                if widened is None:
                    widened = torch.empty(block.shape, device=block.device)
                yield widened[: len(block)].copy_(block)

        def read(numbers: np.ndarray) -> Tensor:
            return rows[torch.from_numpy(numbers).to(rows.device)].cpu()

        return cls(num_rows=len(rows), width=rows.shape[1], blocks=blocks, read=read)

    def block_rows(self, device: torch.device) -> int:
        """Return how many rows make a good block for a device."""
        size = BLOCK_BYTES.get(device.type, _BLOCK_BYTES_ELSEWHERE) // (4 * self.width)
        return max(size // _BLOCK_MULTIPLE, 1) * _BLOCK_MULTIPLE

    def scored_blocks(self, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, rows (b, D) float32, 1 / their lengths (b,)) on a device, all of the database.

        The lengths are kept (4 bytes a row): later searches do not compute them again.

        Raises:
            FovealError: a row that is not finite, or so short or long that float32 cannot square it.
        """
        known, made, first = self._inverse_lengths, [], 0
        for block in self.blocks(self.block_rows(device)):
            block = block.to(device)
            if known is not None:
                inverse = known[first : first + len(block)].to(device)
            else:
                inverse = _inverse_lengths(block, first)
                made.append(inverse.cpu())
            yield first, block, inverse
            first += len(block)
        if first != self.num_rows:
            raise FovealError(f"the database gave {first} of {self.num_rows} rows; its files changed, open it again")
        if made:
            self._inverse_lengths = torch.cat(made)


def _inverse_lengths(block: Tensor, first: int) -> Tensor:
    """Return (b,) 1 / length of each row, 0 for rows of zeros."""
    lengths = torch.linalg.vector_norm(block, dim=1)
    usable = (lengths > _SHORTEST) & (lengths < _LONGEST)
    if not usable.all():
        odd = (~usable).nonzero().squeeze(1)
        for number in odd[(block[odd] != 0).any(dim=1)][:1].tolist():
            raise FovealError(
                f"row {first + number} of the database holds NaN or infinity, or has length {lengths[number]:.3g}, "
                f"outside {_SHORTEST:g} to {_LONGEST:g}; extract it again, or scale the features"
            )
    return torch.where(usable, lengths.reciprocal(), 0.0)
