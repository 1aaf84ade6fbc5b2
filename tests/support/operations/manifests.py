"""What Kustomize makes of deploy/, and what KubeRay makes of that, as far as tests need it."""

import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.tools import ROOT, tool

DEPLOY = ROOT / "deploy"
OVERLAYS = tuple(sorted(path.parent.name for path in DEPLOY.glob("overlays/*/kustomization.yaml")))
COMPONENTS = tuple(sorted(path.parent.name for path in DEPLOY.glob("components/*/kustomization.yaml")))

Document = dict[str, Any]


@lru_cache
def render(folder: Path) -> tuple[Document, ...]:
    """Everything that `kubectl apply --kustomize` would apply."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def overlay(name: str) -> tuple[Document, ...]:
    return render(DEPLOY / "overlays" / name)


def overlay_with(component: str, name: str, folder: Path) -> tuple[Document, ...]:
    """An overlay with a component more, as a user would add it; written to the empty `folder`."""
    kustomization = {
        "resources": [os.path.relpath(DEPLOY / "overlays" / name, folder)],
        "components": [os.path.relpath(DEPLOY / component, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(folder)


def of_kind(documents: tuple[Document, ...], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def ray_service(documents: tuple[Document, ...]) -> Document:
    (service,) = of_kind(documents, "RayService")
    spec: Document = service["spec"]
    return spec


def worker_group(documents: tuple[Document, ...]) -> Document:
    (group,) = ray_service(documents)["rayClusterConfig"]["workerGroupSpecs"]
    found: Document = group
    return found


def pods(documents: tuple[Document, ...]) -> dict[str, Document]:
    """The pods that KubeRay makes, by type of node: the templates, with its labels, as plain pods."""
    cluster = ray_service(documents)["rayClusterConfig"]
    found = {}
    for node_type, group in (("head", cluster["headGroupSpec"]), ("worker", worker_group(documents))):
        metadata = dict(group["template"]["metadata"])
        metadata["labels"] = {**metadata["labels"], "ray.io/cluster": "topk-x", "ray.io/node-type": node_type}
        found[node_type] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": node_type, "namespace": "topk", **metadata},
            "spec": group["template"]["spec"],
        }
    return found


def container(pod: Document) -> Document:
    """The one container of our own; an autoscaler beside the head is KubeRay's."""
    (only,) = pod["spec"]["containers"]
    found: Document = only
    return found


def environment(pod: Document) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(pod)["env"]}


def ports(pod: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(pod)["ports"]}


def selects(selector: Document, pod: Document) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= pod["metadata"]["labels"].items()


def serve_config(documents: tuple[Document, ...]) -> Document:
    config: Document = yaml.safe_load(ray_service(documents)["serveConfigV2"])
    return config


def seconds_of(pod: Document) -> int:
    """How long its preStop hook lets requests run on."""
    command = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
    return int(command[command.index("--deadline-s") + 1])
