"""Run by test_ray.py in an environment with Ray: extract on two nodes, and kill a worker half-way.

python ray_cluster.py PHOTOS MODEL STORE
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

import foveal
from foveal.features.extraction import open_extraction
from foveal.features.ray_shards import Job, run_on_ray
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet

SETTINGS = StoreSettings(tokens=("cls", "patches"), dtype="int8", pca=7, batch_size=16, shard_size=20)
MEMORY = 80 * 1024 * 1024


def kill_one(store: Path, num_finished: int, killed: list[int]) -> None:
    """Kill a worker in the middle of a shard, once some are finished; what it was writing proves that it was."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.001)
        written = next(store.glob("shards/.*.tmp/*.npy"), None)
        if written is None or len(list(store.glob("shards/[0-9]*"))) < num_finished:
            continue
        pid = int(written.parent.name.split(".")[-2])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        if written.exists():
            return
    raise TimeoutError("no worker was met in the middle of a shard within 120 s")


def main(photos: str, model: str, store: Path) -> None:
    """Extract PHOTOS on a cluster of two nodes of one CPU each."""
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([one for one in ray.nodes() if one["Alive"]]) == 2
        extraction = open_extraction(store, foveal.load(model), ImageSet.open(photos), SETTINGS)
        killed: list[int] = []
        killer = threading.Thread(target=kill_one, args=(store, extraction.card.num_shards // 3, killed))
        killer.start()
        seen: list[int] = []
        summary = run_on_ray(extraction, Job(photos, model, SETTINGS), progress=lambda done, _: seen.append(done))
        killer.join()
        assert summary is not None
        assert seen[-1] == extraction.card.num_images
        assert killed
        print(f"killed {killed}; {len(seen)} shards; {summary['num_features']} features")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
