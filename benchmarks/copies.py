"""How many edited copies are found, and how many of the pairs found are none: descriptors and hashes in one run.

    python benchmarks/copies.py --data FOLDER --out FOLDER --model MODEL --imagededup-python ENV/bin/python

FOLDER of --data holds imagenet_sample, caltech101 and grocery, and copydet for the second table. --out is made outside
the repository and used again where it is there. imagededup (0.3.3 here) has an environment of its own; its hashes are
made there by its own `encode_images`, and compared here by their Hamming distance, which is what it does.

A pair is an original and any other image. It is right when the other was made from that original; two edits of one
original are no pair here. Every other pair counts as wrong, also where two photographs show the same thing or are real
near-duplicates: nobody has looked at all of them, so the precision is a lower bound. As hard negatives there are other
photographs of the same class, which three fifths of the originals have; wrong pairs of one class are counted apart.

Originals are split in two halves. A threshold is either the usual one of a method, or chosen on the first half: the
best F1, or the most copies at a precision of at least 0.99. Everything is measured on the second half.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from copies_made import FAMILIES, FAMILY_OF, ORIGINAL, Truth, make_copies, read_truth

import foveal

BINS = 2001  # similarities from -1 to 1 by thousandths
HASH_BITS = 64
BLOCK = 64

_IMAGEDEDUP = """
import json, sys, time
from imagededup.methods import AHash, DHash, PHash, WHash
folder, out = sys.argv[1:]
found = {}
for kind in (PHash, DHash, WHash, AHash):
    start = time.monotonic()
    codes = kind(verbose=False).encode_images(image_dir=folder, num_enc_workers=0)
    found[kind.__name__] = {"codes": codes, "seconds": time.monotonic() - start}
json.dump(found, open(out, "w"))
"""


@dataclass(frozen=True)
class Method:
    """A way to compare images.

    Attributes:
        name: for the table.
        bins: (rows of queries) -> (queries, N) similarity to every image as a bin of `BINS`.
        usual: the bin from which the method says that two images are copies.
        words: a bin as a threshold in the method's own terms.
        seconds: to describe all images.
    """

    name: str
    bins: Callable[[np.ndarray], np.ndarray]
    usual: int
    words: Callable[[int], str]
    seconds: float


def by_descriptor(name: str, descriptors: torch.Tensor, *, usual: float, seconds: float) -> Method:
    """Compare by cosine."""
    vectors = torch.nn.functional.normalize(descriptors.float(), dim=1).numpy()

    def bins(rows: np.ndarray) -> np.ndarray:
        cosine = vectors[rows] @ vectors.T
        return np.clip(np.floor((cosine + 1) * 1000 + 1e-3), 0, BINS - 1).astype(np.int64)

    return Method(name, bins, round((usual + 1) * 1000), lambda at: f"cosine {at / 1000 - 1:.3f}", seconds)


def by_hash(name: str, hashes: np.ndarray, *, usual: int, seconds: float) -> Method:
    """Compare (N,) uint64 by the bits in which they differ; `usual` is the most that a copy may."""

    def bins(rows: np.ndarray) -> np.ndarray:
        return HASH_BITS - np.bitwise_count(hashes[rows][:, None] ^ hashes[None]).astype(np.int64)

    return Method(name, bins, HASH_BITS - usual, lambda at: f"{HASH_BITS - at} bits", seconds)


def either(one: Method, other: Method) -> Method:
    """Compare by two methods: a pair that the first finds at its usual threshold, or that the second finds."""

    def bins(rows: np.ndarray) -> np.ndarray:
        return np.where(one.bins(rows) >= one.usual, BINS - 1, other.bins(rows))

    name = f"{one.name}, {one.words(one.usual)}, or {other.name}"
    return Method(name, bins, other.usual, other.words, one.seconds + other.seconds)


def descriptors_of(model: str, truth: Truth, *, fit: str) -> Method:
    """Describe images by the class token of a model; "whole" shows it all of a picture, skewed to its crop's square."""
    opened = foveal.load(model, engine="auto" if ":" in model else "torch")
    side = opened.card.crop_size
    start = time.monotonic()
    how = opened.preprocessing(size=(side, side), fit="resize") if fit == "whole" else opened.preprocessing()
    found = []
    for first in range(0, len(truth.files), BLOCK):
        files = truth.files[first : first + BLOCK]
        batch = torch.from_numpy(np.stack([how(path) for path in files]))
        found.append(opened.engine.encode(batch).cls)
    name = f"{opened.card.name}, {'whole picture' if fit == 'whole' else 'centre crop'}"
    return by_descriptor(name, torch.cat(found), usual=0.6, seconds=time.monotonic() - start)


def hashes_of_imagededup(python: Path, truth: Truth, work: Path) -> Iterator[Method]:
    """Yield imagededup's four hashes, at its default of 10 bits."""
    folder, out = work / "links", work / "imagededup.json"
    folder.mkdir(exist_ok=True)
    for row, path in enumerate(truth.files):
        if not (link := folder / f"{row:06d}{path.suffix}").is_symlink():
            link.symlink_to(path.resolve())
    subprocess.run([python, "-W", "ignore", "-c", _IMAGEDEDUP, folder, out], check=True)
    for name, found in json.loads(out.read_text()).items():
        codes = [found["codes"][f"{row:06d}{path.suffix}"] for row, path in enumerate(truth.files)]
        hashes = np.array([int(code, 16) for code in codes], dtype=np.uint64)
        yield by_hash(f"imagededup {name}", hashes, usual=10, seconds=found["seconds"])


@dataclass(frozen=True)
class Counts:
    """Pairs by similarity: right ones by the kind of edit, wrong ones of one class and of others; in halves.

    Attributes:
        pairs: (2, kinds + 2, BINS).
        kinds: their names.
    """

    pairs: np.ndarray
    kinds: list[str]

    def at(self, threshold: int, *, half: int) -> tuple[dict[str, tuple[int, int]], int, int]:
        """Return ((found, all) of each kind, wrong pairs of one class, wrong pairs of others)."""
        found, whole = self.pairs[half, :, threshold:].sum(axis=1), self.pairs[half].sum(axis=1)
        by_kind = {kind: (int(found[i]), int(whole[i])) for i, kind in enumerate(self.kinds)}
        return by_kind, int(found[-2]), int(found[-1])

    def chosen(self, *, least_precision: float | None) -> int | None:
        """Return the threshold of the best F1 on the first half, or of the most copies at a precision."""
        right = self.pairs[0, :-2].sum(axis=0)[::-1].cumsum()[::-1]
        wrong = self.pairs[0, -2:].sum(axis=0)[::-1].cumsum()[::-1]
        if least_precision is None:
            return int(np.argmax(2 * right / (right + wrong + right[0])))
        good = np.flatnonzero((right > 0) & (right >= least_precision * (right + wrong)))
        return int(good[0]) if len(good) else None


def count_pairs(method: Method, truth: Truth) -> Counts:
    """Compare every original with every image."""
    kinds = [kind for kind in dict.fromkeys(truth.kind) if kind != ORIGINAL]
    kind_of = np.array([kinds.index(kind) if kind != ORIGINAL else -1 for kind in truth.kind])
    labels = np.unique(truth.label, return_inverse=True)[1]
    queries = np.flatnonzero(kind_of == -1)
    row = np.arange(len(truth.files))
    pairs = np.zeros((2, len(kinds) + 2, BINS), dtype=np.int64)
    for first in range(0, len(queries), BLOCK):
        rows = queries[first : first + BLOCK]
        is_right = truth.original[rows][:, None] == truth.original[None]
        is_wrong_kind = np.where(labels[rows][:, None] == labels[None], len(kinds), len(kinds) + 1)
        column = np.where(is_right, kind_of[None], is_wrong_kind)
        is_pair = (kind_of[None] != -1) | (row[None] > rows[:, None])  # two originals are one pair
        half = np.broadcast_to(truth.half[rows][:, None], column.shape)
        place = (half * (len(kinds) + 2) + column) * BINS + method.bins(rows)
        pairs += np.bincount(place[is_pair], minlength=pairs.size).reshape(pairs.shape)
    return Counts(pairs, kinds)


def copydet(data: Path) -> Truth:
    """Return the small public sets of imagededup and PDQ; the edit is in the name, the corrupt file is left out."""
    mixed, base = (data / "copydet/imagededup/tests/data" / name for name in ("mixed_images", "base_images"))
    inputs = data / "copydet/pdq/pdq/data"
    found: list[tuple[Path, str, str]] = [(path, path.stem, ORIGINAL) for path in sorted(base.glob("*.jpg"))]
    for path in sorted(mixed.glob("*.jpg")):
        name, _, edit = path.stem.partition("_")
        if edit != "corrupt":
            found.append((path, name, edit or "same file"))
    for path in sorted((inputs / "bridge-mods").glob("*.jpg")):
        found.append((path, "bridge", ORIGINAL if path.stem == "aaa-orig" else path.stem))
    for path in sorted((inputs / "reg-test-input/dih").glob("*.jpg")):
        found.append((path, "bridge", path.stem.split("-", 2)[2].replace("original", "same file")))
    for path in sorted((inputs / "reg-test-input").glob("labelme-subset/*.jpg")):
        found.append((path, path.stem, ORIGINAL))
    files, names, kinds = (list(column) for column in zip(*found, strict=True))
    original = np.unique(names, return_inverse=True)[1]
    return Truth(files, original, kinds, names, np.ones(len(files), dtype=int))


def share(found: int, whole: int) -> str:
    """Return a share in per cent."""
    return f"{100 * found / whole:.1f}" if whole else "-"


def summary(method: str, at: str, words: str, counts: Counts, threshold: int) -> list[str]:
    """Return a row: precision, recall, recall of each family, wrong pairs."""
    by_kind, same_class, others = counts.at(threshold, half=1)
    right, whole = (sum(one[i] for one in by_kind.values()) for i in (0, 1))
    families = [
        [sum(by_kind[kind][i] for kind in by_kind if FAMILY_OF.get(kind) == family) for i in (0, 1)]
        for family in FAMILIES
    ]
    return [
        method,
        f"{at}: {words}",
        share(right, right + same_class + others),
        share(right, whole),
        *(share(*family) for family in families),
        f"{same_class:,} + {others:,}",
    ]


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table as Markdown."""
    print(f"\n{title}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]))


def report(methods: list[Method], truth: Truth, *, small: Truth | None, small_methods: list[Method]) -> None:
    """Measure and print all tables."""
    rows, by_edit, chosen = [], {}, {}
    for method in methods:
        counts = count_pairs(method, truth)
        best = counts.chosen(least_precision=None)
        strict = counts.chosen(least_precision=0.99)
        for at, threshold in (("usual", method.usual), ("best F1", best), ("precision 0.99", strict)):
            if threshold is None:
                rows.append([method.name, f"{at}: at no threshold", *["-"] * (3 + len(FAMILIES))])
            else:
                rows.append(summary(method.name, at, method.words(threshold), counts, threshold))
        chosen[method.name] = best
        by_edit[method.name] = counts.at(best, half=1)[0]
    columns = ["method", "threshold", "precision", "recall", *FAMILIES, "wrong: same class + others"]
    show("Pairs found, % (recall by family of edits)", columns, rows)
    names = [method.name for method in methods]
    kinds = list(FAMILY_OF)
    show(
        "Recall by edit at the best F1, %",
        ["edit", *names],
        [[kind, *(share(*by_edit[name][kind]) for name in names)] for kind in kinds],
    )
    for method in methods:
        print(f"{method.name}: {len(truth.files) / method.seconds:.0f} images/s described")
    if small is None:
        return
    rows = []
    for method in small_methods:
        counts = count_pairs(method, small)
        for at, threshold in (("usual", method.usual), ("best F1", chosen[method.name])):
            by_kind, *wrong = counts.at(threshold, half=1)
            right, whole = (sum(one[i] for one in by_kind.values()) for i in (0, 1))
            missed = ", ".join(kind for kind, (found, of) in by_kind.items() if found < of)
            rows.append(
                [method.name, f"{at}: {method.words(threshold)}", f"{right} of {whole}", str(sum(wrong)), missed]
            )
    show("copydet", ["method", "threshold", "copies found", "wrong pairs", "missed"], rows)


def methods_for(truth: Truth, work: Path, args: argparse.Namespace) -> list[Method]:
    """Describe all images by every method."""
    work.mkdir(parents=True, exist_ok=True)
    descriptors = [descriptors_of(model, truth, fit=fit) for model in args.model for fit in ("crop", "whole")]
    hashes = list(hashes_of_imagededup(args.imagededup_python, truth, work)) if args.imagededup_python else []
    return [*descriptors, *hashes, *(either(hashes[0], one) for one in descriptors if hashes)]


def main() -> None:
    """Make or read the set, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=[], help="model folders, or other names that foveal.load takes")
    parser.add_argument("--imagededup-python", type=Path, help="interpreter of its environment")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.images < 500:
        parser.error("--images: give at least 500, so that both halves have every edit")
    torch.set_num_threads(1)
    start = time.monotonic()
    is_made = (args.out / "truth.parquet").is_file()
    truth = (
        read_truth(args.out) if is_made else make_copies(args.data, args.out, num_images=args.images, seed=args.seed)
    )
    num_originals = truth.kind.count(ORIGINAL)
    print(f"{len(truth.files):,} images of {num_originals:,} originals, {time.monotonic() - start:.0f} s")
    methods = methods_for(truth, args.out, args)
    small = copydet(args.data) if (args.data / "copydet").is_dir() else None
    small_methods = methods_for(small, args.out / "copydet", args) if small else []
    report(methods, truth, small=small, small_methods=small_methods)
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
