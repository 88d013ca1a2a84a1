# SPDX-License-Identifier: Apache-2.0
"""The shape of the configuration: every setting and every default stands here."""

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from vllm_gateway.configuration import parallelism
from vllm_gateway.configuration.api_keys import AnyKey
from vllm_gateway.configuration.values import (
    BareOff,
    CarriedPath,
    Count,
    Endpoint,
    HostName,
    ListenHost,
    Mib,
    ModelName,
    Origin,
    PlainFile,
    PriorityName,
    PriorityNumber,
    Proxy,
    Repository,
    Seconds,
    Strategy,
    Strict,
    TextOrNumber,
    VariableName,
    Volume,
    Weight,
)


class Tls(Strict):
    """Files in PEM form; they are read again when they change."""

    certificate: str = Field(min_length=1, description="The server's certificate and its intermediate ones.")
    key: str = Field(min_length=1, description="Its private key, without a passphrase.")
    client_ca: str | None = Field(
        None, min_length=1, description="Authorities: clients must show a certificate of one of them."
    )


class Server(Strict):
    """Where clients reach the gateway."""

    host: ListenHost = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    socket: str | None = Field(None, min_length=1, description="A Unix socket for clients, instead of host and port.")
    socket_mode: str = Field(
        "0600", pattern="^0?[0-7]{3}$", description="Who may connect to it: 0660 is its user and its group."
    )
    tls: Tls | None = Field(None, description="HTTPS instead of HTTP: certificate, key, and client_ca.")
    api_keys: tuple[AnyKey, ...] = Field(
        (),
        repr=False,
        description="Clients must send one of them; none: no key is asked for. Plain text may do everything; "
        "a mapping has a name, a role, and key, key_sha256 or key_file.",
    )
    open: bool = Field(False, description="Without keys, serve other machines than this one too.")
    hosts: tuple[HostName, ...] = Field(
        (), description="Without keys: names by which clients may ask for the gateway, besides localhost and addresses."
    )
    allowed_origins: tuple[Origin, ...] = Field(
        (), description="Sites whose pages may call the paths for clients (CORS): https://chat.example.com."
    )
    trusted_proxies: tuple[Proxy, ...] = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For is believed; unix: of a Unix socket."
    )
    head_timeout_s: Seconds = Field(10, gt=0, description="From the first byte of a request's head to its last one.")
    max_head_kib: int = Field(64, ge=8, le=1024, description="Larger heads get 431.")
    idle_timeout_s: Seconds = Field(3600, gt=0, description="How long a connection may wait for its next request.")
    max_idle_connections: Count = Field(4096, ge=1, description="Beyond it, those that have waited longest are closed.")
    max_body_mib: Mib = Field(100, description="Larger request bodies get 413.")
    body_timeout_s: Seconds = Field(
        300,
        gt=0,
        description="Within about this a request's body must be there, however large; a minute more is given.",
    )
    max_buffered_mib: Mib | None = Field(
        None,
        description="Memory for the bodies of all requests together; none: a quarter of what there is, at most 2 GiB.",
    )
    max_body_fields: Count = Field(1000, ge=1, description="Fields of a body, or parts of a form. More get 400.")
    max_body_messages: Count = Field(
        20_000, ge=1, description="Messages and their parts, prompts or inputs in a large body."
    )
    max_body_items: Count = Field(200_000, ge=1, description="Lists and objects in a large body.")
    max_body_depth: Count = Field(200, ge=1, description="Lists and objects within each other in a large body.")
    extra_paths: tuple[CarriedPath, ...] = Field(
        (), description="Carried to engines beside those that clients of vLLM need: /path (POST), or METHOD /path."
    )
    echo_aliases: bool = Field(
        True, description="Replies to a request by an alias name the alias; false: the model's own name."
    )
    list_aliases: bool = Field(True, description="GET /v1/models lists aliases beside the models' own names.")
    max_event_mib: Mib = Field(8, description="An engine's stream with a larger event is ended with an error.")
    control_socket: str | None = Field(None, description="Where a new gateway takes over from this one; none: derived.")
    drain_timeout_s: Seconds = Field(30, description="At a stop or take-over: how long requests in flight may take.")


class Docker(Strict):
    """The `docker` runtime."""

    image: str = "vllm/vllm-openai:latest"
    container_prefix: str = Field("vllm_server", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
    network: str | None = Field(None, description="Reach containers by name on this Docker network, publish no ports.")
    cache_dir: str | None = Field(
        None, description="Host folder mounted as the engine's Hugging Face cache; none: a Docker volume."
    )
    volumes: tuple[Volume, ...] = Field((), description="Further mounts for engines: /on/the/host:/in/the/engine[:ro].")
    pull: Literal["missing", "never", "always"] = "missing"
    pull_stall_s: Seconds = Field(120, gt=0, description="A pull in which nothing moves for so long has failed.")
    pull_timeout_s: Seconds = Field(7200, gt=0, description="How long a pull may take in all.")
    on_exit: Literal["keep", "stop"] = Field("keep", description="What becomes of instances when the gateway ends.")
    ipc: Literal["host", "private"] = "private"
    shm_mib: Mib | None = Field(
        None,
        description="Most that /dev/shm of a container may hold, with `ipc: private`; none: 16 GiB.",
    )

    @model_validator(mode="after")
    def _shared_memory_is_its_own(self) -> "Docker":
        if self.shm_mib is not None and self.ipc == "host":
            raise ValueError("`shm_mib` needs `ipc: private`: with `ipc: host` the shared memory is the host's")
        return self


class Process(Strict):
    """The `process` runtime: engines are child processes of the gateway."""

    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("vllm", "serve"), min_length=1, description="`simulated` alone is the simulated engine."
    )


class Device(Strict):
    """A GPU that NVML cannot tell of, or a simulated one."""

    name: str
    memory_mib: Mib
    id: str | None = None


class Gpus(Strict):
    """The GPUs whose memory is shared out."""

    source: Literal["nvml", "static", "simulated"] = "nvml"
    devices: tuple[Device, ...] = ()
    only: tuple[TextOrNumber, ...] = Field((), description="Use these, by index or UUID; none: all of them.")
    without: tuple[TextOrNumber, ...] = Field((), alias="except", description="Do not use these, by index or UUID.")
    memory_mib: dict[TextOrNumber, Mib] = Field(
        default_factory=dict,
        description="What GPUs have, by index or UUID, where NVML cannot tell; else it is the machine's memory.",
    )
    margin_mib: Count = Field(512, ge=0, description="Left free on every GPU.")
    min_resident_s: Seconds = Field(60, description="How long a model in use keeps its place; 0: no quantum.")
    max_swap_wait_s: Seconds = Field(
        120,
        description="After min_resident_s it keeps its place while its queue is served, until others waited this long.",
    )

    @model_validator(mode="after")
    def _devices_fit_the_source(self) -> "Gpus":
        if (self.source == "nvml") == bool(self.devices):
            raise ValueError("`devices` belongs to `source: static` and `source: simulated`, which need at least one")
        if self.memory_mib and self.source != "nvml":
            raise ValueError("`memory_mib` belongs to `source: nvml`; the others have `devices`")
        return self

    @property
    def left(self) -> int:
        """How many `devices` there are that are not masked."""
        return sum(self.leaves(index, gpu_id) for index, gpu_id in enumerate(self.ids))

    @property
    def ids(self) -> list[str]:
        """Of `devices`."""
        prefix = "GPU-sim-" if self.source == "simulated" else ""
        return [device.id or f"{prefix}{index}" for index, device in enumerate(self.devices)]

    def leaves(self, index: int, gpu_id: str) -> bool:
        """Whether `only` and `except` let it be used."""
        is_named = not self.only or names_gpu(self.only, index, gpu_id)
        return is_named and not names_gpu(self.without, index, gpu_id)

    def unknown(self, there: Collection[tuple[int, str]]) -> Iterator[tuple[str, str | int, str]]:
        """What names none of those that are there (index and id): the setting, which entry of it, and the problem."""
        listed = ", ".join(str(index) if gpu_id == str(index) else f"{index} ({gpu_id})" for index, gpu_id in there)
        masks = {"only": self.only, "except": self.without, "memory_mib": tuple(self.memory_mib)}
        for setting, entries in masks.items():
            for number, entry in enumerate(entries):
                if not any(names_gpu([entry], index, gpu_id) for index, gpu_id in there):
                    key = entry if setting == "memory_mib" else number
                    yield setting, key, f"there is no GPU {entry!r}; there are: {listed}"


def names_gpu(entries: Sequence[str], index: int, gpu_id: str) -> bool:
    """The beginning of a UUID is enough, as for CUDA."""
    return any(
        entry in (str(index), gpu_id) or (entry.startswith(("GPU-", "MIG-")) and gpu_id.startswith(entry))
        for entry in entries
    )


class Log(Strict):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else JSON.")


class Decisions(Strict):
    """Why requests went where they went; of strategies that have scores."""

    keep: int = Field(100, ge=0, le=10_000, description="How many of each model to keep, for GET /gateway/decisions.")
    log_every: Count = Field(0, ge=0, description="One in this many is logged; 0: none.")


class Retry(Strict):
    """Requests whose instance failed before the first byte of its reply are tried on another one."""

    attempts: int = Field(3, ge=1, le=10, description="Instances that may get one request; 1: never again.")
    budget: float = Field(0.2, ge=0, le=1, description="Retries of a model per request in the window, at most.")
    floor: Count = Field(10, ge=0, description="Or this many in the window, if that is more.")
    window_s: Seconds = Field(60, gt=0, description="The window.")
    same_after_s: Seconds = Field(1, description="After this, an only instance gets a request again that it failed.")


class Ejection(Strict):
    """An instance whose requests fail gets none for a while. Never the last one of a model."""

    consecutive_failures: Count = Field(3, ge=1, description="This many requests in a row without a complete reply.")
    error_rate: float = Field(0.5, gt=0, le=1, description="Or this share of at least 10 requests; 5xx replies count.")
    window_s: Seconds = Field(30, gt=0, description="In which that share is counted.")
    max_share: float = Field(0.5, gt=0, le=1, description="Most of a model's instances at once; at least one of two.")


class Health(Strict):
    """Instances that run are watched. One that does not answer, or does not work, gets no requests until it does."""

    every_s: Seconds = Field(3, gt=0, description="How often each is asked for its health; two misses in a row count.")
    timeout_s: Seconds = Field(4, gt=0, description="How long its answer may take.")
    replace_after_s: Seconds = Field(60, description="One that has not answered for so long is replaced.")
    stall_s: Seconds = Field(
        120, gt=0, description="One with requests of which nothing moves for so long is put to the test."
    )


class Timeouts(Strict):
    """How long each part of a request may bring nothing. Only `client_s` can be met by a client that is merely slow."""

    connect_s: Seconds = Field(5, gt=0, description="To an instance.")
    first_byte_s: Seconds = Field(600, description="From the request to the first byte of its reply; 0: no limit.")
    idle_s: Seconds = Field(120, description="Between two bytes of a reply that has begun; 0: no limit.")
    request_s: Seconds = Field(0, description="For the whole request, its wait for an instance included; 0: no limit.")
    client_s: Seconds = Field(120, description="Until a client takes the next byte of its reply; 0: no limit.")


Resume = Annotated[Literal["exact", "best_effort", "off"], BareOff]
ColdStart = Literal["wait", "keepalive"]
EngineAddress = Literal["socket", "port"]
Sleep = Annotated[Literal["off", "level_1"], BareOff]


class Model(Strict):
    """What one user-facing name means, and how to serve it."""

    repository: Repository | None = Field(
        None, min_length=1, description="Hugging Face repository or a path the engine can read."
    )
    endpoints: tuple[Endpoint, ...] = Field((), description="Engines that you run yourself: http://host:port.")
    instances: int = Field(1, ge=1, le=64, strict=True, description="To run side by side.")
    aliases: tuple[ModelName, ...] = Field((), description="Other names that clients may use.")
    adapters: tuple[ModelName, ...] = Field((), description="LoRA adapters of its engines, as clients name them.")
    engine_arguments: tuple[TextOrNumber, ...] = Field((), description="Added to the engine's command line.")
    environment: dict[VariableName, TextOrNumber] = Field(default_factory=dict, repr=False)
    image: str | None = None
    engine_address: EngineAddress | None = Field(None, description="Overrides the default.")
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    footprint_mib: Mib | None = Field(None, description="GPU memory of one instance on each of its GPUs.")
    pinned: bool = Field(False, description="Never evicted, never stopped for idleness.")
    idle_timeout_s: Seconds | None = Field(None, description="Overrides the default; 0: never.")
    max_in_flight: Count | None = Field(None, ge=1)
    weights: tuple[Weight, ...] = Field(
        (), description="Relative strength of instance 1, 2, ...; 1 for those not listed."
    )
    strategy: Strategy | None = None
    first_byte_timeout_s: Seconds | None = Field(None, description="Overrides `timeouts.first_byte_s`.")
    resume: Resume | None = None
    cold_start: ColdStart | None = None
    sleep: Sleep = Field(
        "off", description="level_1: an evicted instance sleeps (its parameters in the machine's memory)."
    )

    @property
    def shards(self) -> int:
        """The parts into which its weights are cut, each on a GPU of its own. Raises BadSize."""
        return self.tensor_parallel_size * parallelism.shards(self.engine_arguments)

    @property
    def gpu_count(self) -> int:
        """GPUs of one instance. Raises BadSize."""
        return self.shards * parallelism.copies(self.engine_arguments)

    @model_validator(mode="after")
    def _repository_or_endpoints(self) -> "Model":
        if (self.repository is None) == (not self.endpoints):
            raise ValueError(
                "give either `repository` (the gateway starts engines) or `endpoints` (somebody else does)"
            )
        if self.endpoints and self.sleep != "off":
            raise ValueError("`sleep` is for engines that the gateway starts, and these are somebody else's")
        return self


class Settings(Strict):
    """The whole configuration, validated and frozen."""

    server: Server = Server()
    runtime: Literal["docker", "process"] = "docker"
    docker: Docker = Docker()
    process: Process = Process()
    engine_address: EngineAddress | None = Field(
        None,
        description="Where engines listen: a Unix socket of the gateway's own, or a port; none: a port on "
        "`docker.network` if that is set, else a socket.",
    )
    gpus: Gpus = Gpus()
    log: Log = Log()
    models: dict[ModelName, Model] = Field(default_factory=dict)
    strategy: Strategy = Field("round_robin", description="For every model that names none.")
    strategies_dir: str | None = None
    slow_start_s: Seconds = Field(10, description="How long a new instance takes to its full share; 0: at once.")
    decisions: Decisions = Decisions()
    max_in_flight: Count = Field(256, ge=1, description="Most requests at once on one instance.")
    queue_size: Count = Field(1000, ge=1, description="Most waiting requests of one model; further ones get 429.")
    queue_timeout_s: Seconds = Field(600, gt=0, description="Longest wait for an instance.")
    priorities: dict[PriorityName, PriorityNumber] = Field(
        {"high": 10, "normal": 0, "low": -10},
        max_length=16,
        description="Values of the X-Priority header; higher numbers are served first.",
    )
    retry: Retry = Retry()
    ejection: Ejection = Ejection()
    health: Health = Health()
    timeouts: Timeouts = Timeouts()
    resume: Resume = Field("exact", description="Whether another instance continues a stream whose instance fails.")
    cold_start: ColdStart = Field("wait", description="keepalive: comments keep a stream alive while it waits.")
    idle_timeout_s: Seconds = Field(
        1800, description="How long a model may be unused before it is stopped; 0: for ever."
    )
    host_memory_mib: Mib | None = Field(
        None, description="Memory of the machine that sleeping instances may hold; none: half of it."
    )
    start_timeout_s: Seconds = Field(1200, gt=0, description="How long the start of an instance may take.")
    stop_grace_s: Seconds = Field(10, description="From SIGTERM to SIGKILL.")
    reload: Literal["signal", "watch"] = Field("signal", description="SIGHUP, or also a change of the file.")
    state_dir: str | None = Field(
        None, min_length=1, description="The folder of all that the gateway keeps; none: systemd's or the user's."
    )
    memory_footprint_file: str = "memory_footprints.json"
    record_trace: PlainFile | None = Field(
        None, description="A file for lengths and hashes of requests, no content: for `vllm-gateway simulate`."
    )
    hf_token: str | None = Field(None, repr=False, description="Passed to engines; never logged.")

    def engine_on_port(self, model: str) -> bool:
        """Whether engines of `model` listen on a port, and not on a Unix socket."""
        address = self.models[model].engine_address or self.engine_address
        if address is None:
            return self.runtime == "docker" and self.docker.network is not None
        return address == "port"

    def strategy_of(self, model: str) -> str | dict[str, Any]:
        return self.models[model].strategy or self.strategy

    def strategy_name(self, model: str) -> str:
        strategy = self.strategy_of(model)
        return strategy if isinstance(strategy, str) else str(strategy["name"])

    @field_validator("priorities")
    @classmethod
    def _there_is_a_normal_one(cls, priorities: dict[str, int]) -> dict[str, int]:
        if "normal" not in priorities:
            raise ValueError("`normal` must be among them: it is the priority of requests that name none")
        return priorities
