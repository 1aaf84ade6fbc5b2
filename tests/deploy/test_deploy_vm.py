"""deploy/vm: the same application on machines without Kubernetes."""

import yaml
from ray.serve.schema import ServeDeploySchema

from service.settings import Settings
from tests.support.operations.manifests import DEPLOY, environment, overlay, pods, serve_config

FOLDER = DEPLOY / "vm"
#: What KubeRay, or the image, sets itself.
OWN_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"}


def test_serve_reads_every_field_and_so_do_we(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    assert ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True) == config
    (application,) = config["applications"]
    keys = tmp_path / "api-keys"
    keys.write_text("a-key-of-a-test\n")
    Settings(**{**application["args"], "api_key_file": keys, "host": "0.0.0.0"})
    (deployment,) = application["deployments"]
    assert deployment["max_surge_percent"] > 0


def test_it_differs_from_the_overlays_in_sizes_alone() -> None:
    config, of_gpu = yaml.safe_load((FOLDER / "serve.yaml").read_text()), serve_config(overlay("gpu"))
    assert {k: v for k, v in config.items() if k != "applications"} == {
        k: v for k, v in of_gpu.items() if k != "applications"
    }
    assert config["applications"][0]["import_path"] == of_gpu["applications"][0]["import_path"]


def test_ray_gets_the_environment_that_the_pods_give_it() -> None:
    lines = [line for line in (FOLDER / "ray.env").read_text().splitlines() if not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert {name: value for name, value in given.items() if name not in OWN_VARIABLES} == environment(
        pods(overlay("gpu"))["worker"]
    )
