"""Everything that the operator of the service decides, from arguments and the environment.

The only file that reads `TOPK_*` variables. Knows no Ray and no HTTP.
"""

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.admission import ApiKeys, check_keys, read_keys
from service.engine.config import EngineConfig
from service.environment import own_variables
from service.requests.limits import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from topk_model.model_folder import DEFAULT_MODEL, STEP_PREFIX

ENV_PREFIX = "TOPK_"
#: The package that sends traces, from the extra `otel`.
OTLP_PACKAGE = "opentelemetry-exporter-otlp-proto-http"
MODEL_NAME = re.compile(r"[A-Za-z0-9._:@/-]+")
#: Settings for how the number of replicas follows the load; `max_replicas` turns autoscaling on.
AUTOSCALING_FIELDS = ("min_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
HOST_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]+")
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\s]+")
CHECKPOINT_SUFFIX = re.compile(rf"@{STEP_PREFIX}[0-9]+$")

_ENGINE = EngineConfig()


class Settings(BaseSettings):
    """One value per field: an argument, or else the variable `TOPK_<FIELD>`, or else the default.

    Raises:
        pydantic.ValidationError: a value is out of range, a `TOPK_` variable has no field, or the service would be
            open to other machines without an API key.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )

    model: Path = Field(DEFAULT_MODEL, description="folder of the model: weights, configuration, tokenizer")
    model_id: str = Field("", description="name in requests (default: topk- and the folder's name)")
    models: Annotated[dict[str, Path], NoDecode] = Field(
        {}, description="further models to serve: comma-separated, each as name=folder"
    )
    max_loaded_checkpoints: int = Field(
        2,
        ge=1,
        description="maximum number of checkpoints (model@step-N in requests) in a replica's memory at once",
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="host names under which the service may be reached, besides those of loopback: comma-separated, "
        "*.example.org for all subdomains, * for any (default: none on loopback without API keys, otherwise any)",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="web pages that may use the service from a browser, besides its own: comma-separated origins, like "
        "https://example.org, or * for any",
    )
    http_port: int = Field(8000, ge=1, le=65535, description="port of the HTTP API, the playground and /metrics")
    grpc_port: int = Field(9000, ge=1, le=65535, description="port of the gRPC API")
    grpc_max_message_bytes: int = Field(
        4 * 2**20, ge=2**16, lt=2**31, description="bytes of the largest gRPC message; clients accept 4 MiB by default"
    )
    ray_address: str = Field(
        "",
        description="a running Ray to serve on, from its head node: auto or host:port (default: start a new Ray)",
    )
    proxy: Literal["haproxy", "python"] = Field(
        "haproxy", description="Ray Serve's proxy in front of the replicas: haproxy is faster, python supports TLS"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="API keys, one of which a request must send; comma-separated in the environment"
    )
    tls_certificate: Path | None = Field(
        None, description="certificate chain (PEM) for HTTPS, with tls_key; needs the python proxy"
    )
    tls_key: Path | None = Field(None, description="private key (PEM) of tls_certificate")
    api_key_file: Path | None = Field(
        None,
        description="file of API keys, one per line; empty lines and lines that begin with # are skipped; changes take "
        "effect within seconds",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device that the models run on; auto: a GPU if the replica has one"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="type of the weights and, on a GPU, of the KV cache; auto: float32 on a CPU, bfloat16 on a GPU; "
        "int8 (a scale for each output channel) needs the compiled step on a CPU",
    )
    cpu_step: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="how steps run on a CPU: by the compiled step, which needs a C++ compiler once, or by torch; auto: "
        "the compiled step if it is available, otherwise torch",
    )
    num_replicas: int | None = Field(
        None, ge=1, description="a fixed number of replicas (default: 1, unless max_replicas is given)"
    )
    max_replicas: int | None = Field(None, ge=1, description="as many replicas as the load needs, up to this maximum")
    min_replicas: int | None = Field(None, ge=1, description="with max_replicas: never fewer than this (default: 1)")
    target_ongoing_requests: float | None = Field(
        None,
        gt=0,
        description="with max_replicas: target number of ongoing requests per replica (default: max_num_seqs / 2)",
    )
    max_surge_percent: int = Field(
        25,
        ge=0,
        le=100,
        description="an update starts new replicas before it stops old ones: at most this fraction more, rounded up. "
        "It waits until there is room for them; 0: old ones stop first, so that a single replica leaves a gap",
    )
    upscale_delay_s: float | None = Field(
        None,
        ge=0,
        description="with max_replicas: seconds that a load must last before a replica is added (default: 30)",
    )
    downscale_delay_s: float | None = Field(
        None, ge=0, description="with max_replicas: seconds of lower load before a replica is removed (default: 600)"
    )
    num_gpus: float | None = Field(None, ge=0.0, description="GPUs per replica (default: 1 if it uses a GPU)")
    num_cpus: float = Field(1.0, ge=0.0, description="CPUs that Ray reserves per replica")
    num_threads: int = Field(
        0, ge=0, description="CPU threads of a replica's engine; 0: one fewer than the cores, at least 1"
    )

    # For the engine of each model; `EngineConfig` gives the reasons for the defaults.
    max_num_seqs: int = Field(
        _ENGINE.max_num_seqs, ge=1, description="maximum number of sequences that run at once; the others wait"
    )
    max_step_tokens: int = Field(
        _ENGINE.max_step_tokens,
        ge=1,
        description="maximum number of tokens per step, at least max_num_seqs + prefill_chunk; with more, prompts are "
        "read sooner and the next tokens of other sequences come later",
    )
    max_waiting: int = Field(
        _ENGINE.max_waiting,
        ge=1,
        description="maximum number of waiting sequences; a request with more sequences than this is an error",
    )
    max_backlog: int = Field(
        _ENGINE.max_backlog,
        ge=1,
        description="sequences that may wait beyond the free slots; beyond that, requests get 429",
    )
    num_blocks: int = Field(
        _ENGINE.num_blocks,
        ge=1,
        description="blocks in each model's KV cache, allocated to sequences as they grow; if none is free, the newest "
        "sequence is restarted later",
    )
    prefix_cache: bool = Field(
        _ENGINE.prefix_cache,
        description="sequences that begin with the same tokens under the same edits read this prefix once",
    )
    block_size: int = Field(_ENGINE.block_size, ge=1, description="positions per block, a multiple of 16")
    prefill_chunk: int = Field(
        _ENGINE.prefill_chunk, ge=1, description="prompts are read in pieces of this many tokens, whatever the load"
    )

    max_ongoing_requests: int = Field(512, ge=1, description="requests that a replica answers at once; others get 429")
    max_queued_requests: int = Field(
        256, ge=-1, description="requests that Serve holds for a busy replica; -1: no limit"
    )
    max_side_jobs: int = Field(
        4, ge=1, description="attributions and the like that run, one at a time, or wait in a replica; more get 429"
    )
    retry_after_s: int = Field(1, ge=1, description="seconds that a 429 tells the client to wait")
    request_timeout_s: float = Field(
        DEFAULT_TIMEOUT_S,
        gt=0,
        le=MAX_TIMEOUT_S,
        description="seconds that a request may take if it gives no timeout_s",
    )

    health_check_period_s: float = Field(1.0, gt=0, description="seconds between Serve's health checks of a replica")
    health_check_timeout_s: float = Field(
        10.0, gt=0, description="seconds that a health check may take; a replica that fails three in a row is replaced"
    )
    max_heartbeat_age_s: float = Field(30.0, gt=0, description="seconds without progress after which an engine is hung")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that a stopping replica waits for its requests")
    start_timeout_s: float = Field(300.0, gt=0, description="seconds that a start may take")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING",
        description="INFO: a line for every request; WARNING: only for requests that failed through an internal error",
    )
    log_format: Literal["text", "json"] = Field("text", description="json: one object per line, for a log collector")
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="where to send OpenTelemetry traces, such as http://collector:4318/v1/traces (default: nowhere)",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = own_variables(env_settings.env_vars)  # type: ignore[arg-type]
        return init_settings, env_settings

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_variables(cls, values: Any) -> Any:
        known = {ENV_PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted(
            name
            for name in own_variables(os.environ)
            if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
        )
        if unknown:
            raise ValueError(f"{unknown[0]} is not a setting; the settings are {', '.join(sorted(known))}")
        return values

    @field_validator("api_keys", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(item for item in (part.strip() for part in value.split(",")) if item)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not HOST_NAME.fullmatch(host):
                raise ValueError(f"{host!r} must be a name or an address without scheme, port or path, *.name, or *")
        return hosts

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} must be an origin such as https://example.org:8443, without a path, or null, or *"
                )
        return origins

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        if not all(separator and folder for _, separator, folder in pairs):
            raise ValueError("must be name=folder, comma-separated")
        models = {name: folder for name, _, folder in pairs}
        if len(models) < len(pairs):
            raise ValueError("must not have the same name twice")
        return models

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self.engine_config()
        if self.http_port == self.grpc_port:
            raise ValueError(f"http_port and grpc_port are both {self.http_port}, but must differ")
        if self.otlp_endpoint and not any(distributions(name=OTLP_PACKAGE)):
            raise ValueError(f"otlp_endpoint needs {OTLP_PACKAGE}: pip install 'topk-serve[otel]'")
        if self.resolved_model_id in self.models:
            raise ValueError(f"models has {self.resolved_model_id!r}, which is the name of model")
        for name in self.served_models():
            if not MODEL_NAME.fullmatch(name) or CHECKPOINT_SUFFIX.search(name):
                raise ValueError(
                    f"{name!r} cannot be a model's name: it may contain letters, digits and . _ : @ / -, and must not "
                    f"end like the name of a checkpoint, with @{STEP_PREFIX} and digits"
                )
        self._check_scale()
        self._check_tls()
        check_keys(self.all_api_keys())
        if not self.is_loopback and not self.all_api_keys():
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and there is no API key: set "
                f"{ENV_PREFIX}API_KEY_FILE or {ENV_PREFIX}API_KEYS, or listen on 127.0.0.1"
            )
        return self

    def _check_scale(self) -> None:
        if self.max_replicas is None:
            for name in AUTOSCALING_FIELDS:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is given without max_replicas, which turns autoscaling on")
            return
        if self.num_replicas is not None:
            raise ValueError("num_replicas and max_replicas are both given: one fixes the number, the other varies it")
        if self.min_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, above max_replicas ({self.max_replicas})")
        if self.target_ongoing_requests is not None and self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"target_ongoing_requests is {self.target_ongoing_requests:g}, above max_ongoing_requests "
                f"({self.max_ongoing_requests}): no replica would ever be added"
            )

    def _check_tls(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        if self.tls_certificate is None:
            return
        if self.proxy == "haproxy":
            raise ValueError("tls_certificate needs --proxy python: Ray Serve's HAProxy does not support TLS")
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.tls_certificate, self.tls_key, password=lambda: ""
            )
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"tls_certificate {self.tls_certificate} and tls_key {self.tls_key} cannot be used: {error}"
            ) from error

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def asks_for_key(self) -> bool:
        return bool(self.api_keys) or self.api_key_file is not None

    @property
    def resolved_model_id(self) -> str:
        """The name under which requests ask for the model."""
        return self.model_id or f"topk-{self.model.resolve().name}"

    def served_models(self) -> dict[str, Path]:
        """Names and folders of all models, `model` first."""
        return {self.resolved_model_id: self.model, **self.models}

    def all_api_keys(self) -> tuple[str, ...]:
        """Every accepted key; if there are none, no key is required.

        Raises:
            ValueError: the key file cannot be read or contains no key.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_key_file is not None:
            keys += read_keys(self.api_key_file)
        return tuple(keys)

    def open_api_keys(self) -> ApiKeys:
        """Every accepted key, following the key file as it changes.

        Raises:
            ValueError: as `all_api_keys`.
        """
        return ApiKeys([key.get_secret_value() for key in self.api_keys], self.api_key_file)

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            max_num_seqs=self.max_num_seqs,
            max_step_tokens=self.max_step_tokens,
            max_waiting=self.max_waiting,
            max_backlog=self.max_backlog,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            prefill_chunk=self.prefill_chunk,
            prefix_cache=self.prefix_cache,
            # The event loop and the proxy need a core too; a product that waits for one of its threads stalls a step.
            num_threads=self.num_threads or max(1, len(os.sched_getaffinity(0)) - 1),
            cpu_step=self.cpu_step,
        )


def settings_from_arguments(arguments: Mapping[str, Any]) -> Settings:
    """Settings of an application that a cluster's own configuration deploys; the cluster opens the port.

    Raises:
        pydantic.ValidationError: as for `Settings`; a missing `host` counts as one that other machines can reach.
    """
    if "host" in arguments or f"{ENV_PREFIX}HOST" in os.environ:
        return Settings(**arguments)
    return Settings(**{**arguments, "host": "0.0.0.0"})
