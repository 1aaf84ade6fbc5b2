"""Everything about the service that the operator decides, from arguments and the environment.

The only file that reads `TOPK_*` variables. Knows no Ray and no HTTP.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.engine.config import EngineConfig
from service.schema import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S

ENV_PREFIX = "TOPK_"
#: The model that ships with the package.
DEFAULT_MODEL_PATH = Path(__file__).parent.parent / "topk_model" / "default"
MIN_API_KEY_LENGTH = 8

_ENGINE = EngineConfig()


class Settings(BaseSettings):
    """One value per field: an argument, else the variable `TOPK_<FIELD>`, else the default.

    Raises:
        pydantic.ValidationError: a value is out of its range, a `TOPK_` variable has no field, or the service would be
            open to other machines without an API key.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )

    model: Path = Field(DEFAULT_MODEL_PATH, description="folder of the model: weights, configuration, tokenizer")
    model_id: str = Field("", pattern=r"^[A-Za-z0-9._:@/-]*$", description="name in requests; empty: the folder's name")

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    http_port: int = Field(8000, ge=1, le=65535)
    grpc_port: int = Field(9000, ge=1, le=65535)
    grpc_max_message_bytes: int = Field(
        4 * 2**20, ge=2**16, lt=2**31, description="largest gRPC message, either way; clients take 4 MiB by default"
    )
    proxy: Literal["haproxy", "python"] = "haproxy"
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="comma-separated in the environment")
    api_key_file: Path | None = Field(None, description="one key a line; empty lines and lines with # are skipped")

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    num_replicas: int = Field(1, ge=1)
    num_gpus: float | None = Field(None, ge=0.0, description="GPUs of a replica; none given: 1 where it is to use one")
    num_cpus: float = Field(1.0, ge=0.0, description="CPUs that Ray reserves for a replica")
    num_threads: int = Field(
        0, ge=0, description="CPU threads of a replica's matrix products; 0: one fewer than the cores, at least 1"
    )

    max_num_seqs: int = Field(_ENGINE.max_num_seqs, ge=1)
    max_step_tokens: int = Field(_ENGINE.max_step_tokens, ge=1)
    max_waiting: int = Field(_ENGINE.max_waiting, ge=1)
    num_blocks: int = Field(_ENGINE.num_blocks, ge=1)
    block_size: int = Field(_ENGINE.block_size, ge=1)
    prefill_chunk: int = Field(_ENGINE.prefill_chunk, ge=1)

    max_ongoing_requests: int = Field(512, ge=1, description="HTTP requests in a replica at once; more get 429")
    max_queued_requests: int = Field(256, ge=-1, description="requests that Serve holds before a replica; -1: no limit")
    retry_after_s: int = Field(1, ge=1, description="what a 429 tells the client to wait")
    request_timeout_s: float = Field(
        DEFAULT_TIMEOUT_S, gt=0, le=MAX_TIMEOUT_S, description="time that a request gets which names none"
    )

    health_check_period_s: float = Field(1.0, gt=0)
    health_check_timeout_s: float = Field(10.0, gt=0)
    max_heartbeat_age_s: float = Field(30.0, gt=0, description="an engine silent for longer is taken for hung")
    drain_timeout_s: float = Field(30.0, ge=0, description="longest that a stopping replica waits for its requests")
    start_timeout_s: float = Field(300.0, gt=0, description="longest that a start may take")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_variables(cls, values: Any) -> Any:
        known = {ENV_PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
        )
        if unknown:
            raise ValueError(f"{unknown[0]} is no setting; the settings are {', '.join(sorted(known))}")
        return values

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_api_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key for key in (part.strip() for part in value.split(",")) if key)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self.engine_config()
        for key in self.all_api_keys():
            if len(key) < MIN_API_KEY_LENGTH or not key.isascii():
                raise ValueError(f"an API key is not ASCII or shorter than {MIN_API_KEY_LENGTH} characters")
        if not self.is_loopback and not self.all_api_keys():
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and there is no API key: set "
                f"{ENV_PREFIX}API_KEY_FILE or {ENV_PREFIX}API_KEYS, or listen on 127.0.0.1"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def resolved_model_id(self) -> str:
        """The name under which requests ask for the model."""
        return self.model_id or f"topk-{self.model.resolve().name}"

    def all_api_keys(self) -> tuple[str, ...]:
        """Every accepted key; none means that no key is asked for.

        Raises:
            ValueError: the key file cannot be read, or holds no key.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"api_key_file {self.api_key_file} cannot be read: {error}") from error
            found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not found:
                raise ValueError(f"api_key_file {self.api_key_file} holds no key")
            keys += found
        return tuple(keys)

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            max_num_seqs=self.max_num_seqs,
            max_step_tokens=self.max_step_tokens,
            max_waiting=self.max_waiting,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            prefill_chunk=self.prefill_chunk,
            # The event loop and the proxy want a core too; a product that waits for one of its threads stalls a step.
            num_threads=self.num_threads or max(1, len(os.sched_getaffinity(0)) - 1),
        )


def settings_from_arguments(arguments: Mapping[str, Any]) -> Settings:
    """Settings of an application that a cluster's own configuration deploys, where it, not we, opens the port.

    Raises:
        pydantic.ValidationError: as `Settings`; a missing `host` counts as one that other machines can reach.
    """
    if "host" in arguments or f"{ENV_PREFIX}HOST" in os.environ:
        return Settings(**arguments)
    return Settings(**{**arguments, "host": "0.0.0.0"})
