"""The order of the images: a keyed permutation per epoch, computed where it is needed and stored nowhere.

Position s of the endless sequence of samples belongs to epoch s // n and shows image P(s % n), where P is a
pseudo-random permutation of range(n) keyed by (seed, epoch). P is a Feistel network on the next even number of bits,
applied again while its result is not below n (cycle walking). Memory is O(1) for any n, resuming is a number, and
neither ranks nor workers can change the order.

Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002 (sections 3 and 4). Deliberate difference to
DINOv2: its sampler shuffles one list in memory, strides it over the ranks, and restarts it on resume.
"""

import numpy as np
import numpy.typing as npt

from foveal.errors import ImageSetError

_NUM_ROUNDS = 8
_WORD = 2**64

UInts = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


def sample_at(position: int, *, num_images: int, seed: int) -> tuple[int, int]:
    """Return (epoch, image index) of one position in the endless sequence of samples.

    Args:
        position: Number of the sample since the start of the run, from 0.
        num_images: Images in the set, at least 1.
        seed: Any integer.

    Raises:
        ImageSetError: The set is empty, or the position is negative.

    Example:
        >>> sorted(sample_at(p, num_images=3, seed=0) for p in range(3))
        [(0, 0), (0, 1), (0, 2)]
    """
    epochs, indices = batch_indices(position, batch_size=1, num_images=num_images, seed=seed)
    return int(epochs[0]), int(indices[0])


def batch_indices(step: int, *, batch_size: int, num_images: int, seed: int) -> tuple[Ints, Ints]:
    """Return the epochs and the image indices of the global batch of one step.

    Slot b holds sample s = step * batch_size + b. A batch that straddles the end of an epoch takes the last images of
    one permutation and the first of the next: no image is missed, none is shown twice in an epoch.

    Args:
        step: Optimizer update, from 0.
        batch_size: Images in the global batch, at least 1.
        num_images: Images in the set, at least 1.
        seed: Any integer.

    Returns:
        epochs (B,) int64 and indices (B,) int64 in [0, num_images).

    Raises:
        ImageSetError: The set is empty, the batch is empty, or the step is negative.
    """
    if num_images < 1:
        raise ImageSetError(f"num_images={num_images}: an order needs at least 1 image; point to a set that has some.")
    if step < 0 or batch_size < 1:
        raise ImageSetError(f"step={step}, batch_size={batch_size}: need step >= 0 and batch_size >= 1.")
    samples = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, positions = np.divmod(samples, num_images)
    keys = _mix(epochs.astype(np.uint64) ^ _mix(_word(seed)))
    return epochs, _permute(positions, num_images=num_images, keys=keys)


def replacement(index: int, attempt: int, *, num_images: int, seed: int, epoch: int) -> int:
    """Return the image that refills the slot of an unreadable one: never the same, and another for every attempt.

    The attempts 0 .. num_images - 2 visit each other image exactly once, in a pseudo-random order keyed by
    (seed, epoch, index); later attempts start over.

    Args:
        index: The unreadable image.
        attempt: From 0; count up while the replacements are unreadable too.
        num_images: Images in the set.
        seed: Any integer.
        epoch: Epoch of the slot that is refilled.

    Raises:
        ImageSetError: The set has no other image.
    """
    if num_images < 2:
        raise ImageSetError(f"image {index} cannot be read and the set has no other image; repair it or add images.")
    num_others = num_images - 1
    key = _mix(_word(index) ^ _mix(_word(epoch) ^ _mix(_word(~seed))))
    offset = 1 + int(_permute(np.array([attempt % num_others]), num_images=num_others, keys=key)[0])
    return (index + offset) % num_images


def _permute(positions: Ints, *, num_images: int, keys: UInts) -> Ints:
    """Return the images of `positions` under permutations of range(num_images); `keys` names one, or one each."""
    half_bits = max(1, ((num_images - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    keys = np.broadcast_to(keys, values.shape)
    outside = np.arange(values.size)  # all are inside; each takes its first round
    while outside.size:
        values[outside] = _feistel(values[outside], half_bits=half_bits, keys=keys[outside])
        outside = outside[values[outside] >= num_images]
    return values.astype(np.int64)


def _feistel(values: UInts, *, half_bits: int, keys: UInts) -> UInts:
    """Return a keyed bijection of [0, 4**half_bits): a round makes (right, left ^ hash(right)) of (left, right)."""
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> shift, values & mask
    for round_number in range(_NUM_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(round_number))) & mask)
    return (left << shift) | right


def _word(number: int) -> UInts:
    """Return an integer of any size and sign as an array of one 64-bit word (arrays wrap around without a warning)."""
    return np.array([number % _WORD], dtype=np.uint64)


def _mix(words: UInts) -> UInts:
    """Return 64-bit words scrambled so that each output bit depends on each input bit (the SplitMix64 step)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
