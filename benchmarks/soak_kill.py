"""Kill a pretraining run again and again, half of the times inside a save, and compare it with one left alone.

    python benchmarks/soak_kill.py --kills 100

The resume test of the suite, ten times as long: the same tiny run on one thread, the same comparison to the last bit of
metrics, checkpoint and model. Prints a line every ten kills, and what the run lost to them.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pretrain"))

from conftest import TINY, write_photos
from killing import Run

SETTINGS = ("checkpoints.every_steps=3", "heads.dino.num_prototypes=4096", "heads.dino.bottleneck=64")
LIMIT_S = 3600
STEPS_PER_KILL = 4  # so that the run lasts longer than the kills


def soak(folder: Path, *, kills: int, seed: int) -> None:
    """Run, kill and compare; AssertionError where anything differs."""
    photos, recipe = write_photos(folder / "photos"), folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    total = STEPS_PER_KILL * kills
    whole, killed = (
        Run(photos, recipe, folder / out, f"total_steps={total}", *SETTINGS) for out in ("whole", "killed")
    )
    started = time.monotonic()
    whole.finish(limit_s=LIMIT_S)
    alone_s = time.monotonic() - started
    rng = random.Random(seed)
    started, repeated = time.monotonic(), 0
    for number in range(kills):
        if number % 2 == 0:
            killed.kill_in_a_save(rng)
        else:
            killed.kill_after_some_steps(rng, most=5)
        repeated += killed.num_lines() - killed.newest()
        if (number + 1) % 10 == 0:
            print(f"{number + 1} kills, checkpoint of step {killed.newest()} of {total}", flush=True)
    killed.finish(limit_s=LIMIT_S)
    assert killed.numbers() == whole.numbers(), "the metrics differ"
    assert killed.newest() == whole.newest() == total
    assert killed.weights() == whole.weights(), "the weights differ"
    print(
        f"{kills} kills, {kills - kills // 2} of them inside a save: equal to the last bit after {total} steps; "
        f"{repeated} steps were run again; {alone_s:.0f} s alone, {time.monotonic() - started:.0f} s with the kills"
    )


def main() -> None:
    """Run it in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak(Path(folder), kills=args.kills, seed=args.seed)


if __name__ == "__main__":
    main()
