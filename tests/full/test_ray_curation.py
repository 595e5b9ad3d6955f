"""Curation on a Ray cluster of two nodes, one of which is lost half-way, equals the single machine byte for byte."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from child import output_of
from curation_stages import run_stages
from environments import ROOT, layered

from foveal.curate.runner import LOCAL
from foveal.images.imageset import ImageSet

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that hold the paths of sources, which lie elsewhere."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "stage.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def test_stages_on_two_nodes_of_which_one_is_lost_equal_those_of_one_machine(tmp_path: Path) -> None:
    python = layered("ray", "ray")
    generator = np.random.default_rng(0)
    groups = generator.normal(size=(200, 48))
    pool = groups[generator.integers(0, 200, 12_000)] + 0.9 * generator.normal(size=(12_000, 48))
    copies = generator.integers(0, 12_000, (2, 500))
    pool[copies[0]] = pool[copies[1]] + 0.02 * generator.normal(size=(500, 48))
    np.save(tmp_path / "pool.npy", pool.astype(np.float16))
    np.save(tmp_path / "seeds.npy", (groups[generator.integers(0, 60, 120)] + 2 * generator.normal(size=(120, 48))))
    printed = output_of(
        [
            python,
            ROOT / "tests/full/ray_curation.py",
            tmp_path / "pool.npy",
            tmp_path / "seeds.npy",
            tmp_path / "ray",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "default"},
        timeout_s=900,
    )
    assert re.search(r"a node was lost after \d+ shards", printed)
    run_stages(tmp_path / "pool.npy", tmp_path / "seeds.npy", tmp_path / "single", LOCAL)
    assert contents(tmp_path / "ray") == contents(tmp_path / "single")
    assert len(ImageSet.open(tmp_path / "single/set")) == 200
    removed = 12_000 - len(ImageSet.open(tmp_path / "single/dedup"))
    assert removed >= 400  # most of the copies, and no more than there can be
