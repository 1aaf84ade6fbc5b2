"""A Ray of two nodes on this machine: prints its address; lines of input take its second node away, put one back, or
update the service on it.

Run as a program: Ray reads its environment once in a process, and one can be driver of one Ray alone.
"""

import sys
from pathlib import Path

import ray
from ray import serve
from ray.cluster_utils import Cluster

from service.rayserve.deployment import build
from service.rayserve.launcher import APP_NAME
from service.settings import Settings
from tests.support.served import MODEL_ID

#: Room for one replica each, of one CPU.
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def main() -> None:
    cluster = Cluster()
    cluster.add_node(**NODE)
    second = cluster.add_node(**NODE)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "kill":
            cluster.remove_node(second, allow_graceful=False)
        elif command == "add":
            second = cluster.add_node(**NODE)
        elif command == "update":
            update(cluster.address, Path(argument))
        print(f"done {line.strip()}", flush=True)
    cluster.shutdown()


def update(address: str, model: Path) -> None:
    """Deploy the service anew, with other settings: Serve replaces its replicas one after the other, and stops each
    before it starts the next, since the nodes have room for no third one."""
    ray.init(address=address, log_to_driver=False)
    settings = Settings(
        model=model,
        model_id=MODEL_ID,
        num_replicas=2,
        max_surge_percent=0,
        num_threads=1,
        num_blocks=512,
        num_gpus=0,
    )
    serve.run(build(settings), name=APP_NAME, route_prefix="/")
    ray.shutdown()


if __name__ == "__main__":
    main()
