"""Run by test_ray_curation.py in an environment with Ray: curate on two nodes, and take one away half-way.

python ray_curation.py POOL SEEDS OUT
"""

import os
import sys
import threading
import time
from pathlib import Path

import ray
import torch
from curation_stages import run_stages
from ray.cluster_utils import Cluster

from foveal.curate.runner import Runner

MEMORY = 80 * 1024 * 1024


def is_busy(raylet: int) -> bool:
    """Tell whether a worker of this node is in the middle of a shard: its title says so then."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"ray::_call" in (status.parent / "cmdline").read_bytes():
                return True
        except OSError:  # it has ended
            continue
    return False


def take_away(cluster: Cluster, node: object, out: Path, lost: list[int]) -> None:
    """Kill a node and all its workers while one is at work, once some shards are finished."""
    (raylet,) = (found.process.pid for found in node.all_processes["raylet"])  # type: ignore[attr-defined]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        num_finished = len(list(out.glob("dedup/shards/*/*.safetensors")))
        if num_finished >= 5 and is_busy(raylet):
            cluster.remove_node(node, allow_graceful=False)
            lost.append(num_finished)
            return
        time.sleep(0.002)
    raise TimeoutError("no worker of the second node was met at work within 120 s")


def main(pool: Path, seeds: Path, out: Path) -> None:
    """Run the stages on a cluster of two nodes of one CPU each, of which one is lost."""
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([one for one in ray.nodes() if one["Alive"]]) == 2
        lost: list[int] = []
        killer = threading.Thread(target=take_away, args=(cluster, second, out, lost))
        killer.start()
        run_stages(pool, seeds, out, Runner(engine="ray"))
        killer.join()
        assert lost
        print(f"a node was lost after {lost[0]} shards")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
