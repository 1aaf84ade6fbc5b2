"""Ends a Ray pod without cutting a request: what its preStop hook runs before Kubernetes sends SIGTERM.

A worker tells Ray that it goes. Serve then starts other replicas, sends new requests there, lets the replicas here end
their requests and stops them. The head waits for workers that do this, since without it nobody would manage them: when
a whole cluster is deleted, all its pods are told to stop at once. Knows nothing of our service but that Serve runs it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 1.0
#: What a worker that is told to stop together with the head needs to tell Ray, which takes a few interpreters to start.
HEAD_START_S = 30.0
#: How Ray names the processes of a node that serve requests: replicas, and the proxies in front of them.
SERVING = (b"ray::ServeReplica:", b"ray::HAProxyManager", b"ray::ProxyActor")


def serving_processes() -> list[int]:
    """Processes of this pod that may be answering requests."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(SERVING):
                found.append(int(path.parent.name))
        except OSError:  # it has ended in the meantime
            continue
    return found


def drain_worker(deadline_s: int) -> None:
    """Have Ray drain this node, and wait until nothing on it serves."""
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "drain-node",
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "the pod stops",
    ]
    subprocess.run([*command, "--deadline-remaining-seconds", str(deadline_s)], check=True)
    while serving_processes():
        time.sleep(POLL_S)


def wait_for_workers(deadline_s: int) -> None:
    """Wait while workers of this cluster drain, for at most `deadline_s`."""
    import ray
    from ray._private.state import state

    give_up_at = time.monotonic() + deadline_s
    ray.init(address="auto", log_to_driver=False)
    time.sleep(HEAD_START_S)
    while state.get_draining_nodes() and time.monotonic() < give_up_at:
        time.sleep(POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("node", choices=("head", "worker"))
    parser.add_argument("--deadline-s", type=int, required=True, help="longest that requests under way may take")
    options = parser.parse_args()
    if options.node == "head":
        wait_for_workers(options.deadline_s)
    else:
        drain_worker(options.deadline_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
