"""Makes a small closed JSON schema of a custom resource definition: `python reduce.py definition.yaml > kind.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

VERSION = "v1"
#: Objects of Kubernetes itself inside a definition. They make up most of it, and have their own validator.
CORE = {"template"}


def reduce(schema: Any) -> Any:
    """The schema without prose, in the terms of JSON Schema, with unknown fields forbidden."""
    if isinstance(schema, list):
        return [reduce(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: part for name, part in schema.items() if not name.startswith("x-kubernetes-")}
    if isinstance(kept.get("description"), str):
        del kept["description"]
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
    if kept.pop("nullable", False):
        kept["type"] = [kept["type"], "null"]
    if "properties" in kept:
        kept["properties"] = {
            name: {"type": "object"} if name in CORE else reduce(part) for name, part in kept["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    return {name: part if name == "properties" else reduce(part) for name, part in kept.items()}


def main(definition: Path) -> None:
    resource = yaml.safe_load(definition.read_text("utf-8"))
    (version,) = (v for v in resource["spec"]["versions"] if v["name"] == VERSION)
    schema = reduce(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    schema["properties"]["metadata"] = {"type": "object"}
    json.dump(schema, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
