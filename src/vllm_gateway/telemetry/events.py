# SPDX-License-Identifier: Apache-2.0
"""The table of every event that the gateway logs: names and fields that log pipelines can rely on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
CONTEXT_FIELDS = ("request_id", "model", "instance")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of log line. `required` fields are always there, `optional` ones where they are known."""

    name: str
    level: Level
    description: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def problems(self, fields: Mapping[str, object]) -> list[str]:
        """What is wrong with these fields for this event; empty: nothing."""
        known = {*self.required, *self.optional, *CONTEXT_FIELDS}
        missing = [f"{self.name}: field '{name}' is missing" for name in self.required if name not in fields]
        return missing + [f"{self.name}: unknown field '{name}'" for name in fields if name not in known]


GATEWAY_STARTING = Event("gateway_starting", "info", "The process began.", (), ("version", "runtime"))
GATEWAY_READY = Event("gateway_ready", "info", "Clients can connect.", ("address",))
GATEWAY_HANDED_OVER = Event(
    "gateway_handed_over", "info", "Another gateway has taken over; this one finishes the connections it has."
)
GATEWAY_GOES_ON = Event(
    "gateway_goes_on", "warning", "The gateway that had taken over has died: this one accepts connections again."
)
CONTROL_SOCKET_PROBLEM = Event(
    "control_socket_problem",
    "warning",
    "A place for take-overs that cannot be used. Another one is, or this one is tried again.",
    ("path", "problem"),
)
GATEWAY_STOPPING = Event("gateway_stopping", "info", "No new requests; streams may finish.")
GATEWAY_STOPPED = Event("gateway_stopped", "info", "The last line of a process.")
PARALLEL_MODELS_CONFIG = Event(
    "parallel_models_config", "info", "The number of instances wanted of each model.", ("models",), ("source",)
)
CONFIG_RELOADED = Event("config_reloaded", "info", "A changed configuration is in force from now on.", ("models",))
CONFIG_RELOAD_FAILED = Event(
    "config_reload_failed", "error", "A changed configuration is wrong, and none of it is applied.", ("problems",)
)
CONFIG_NEEDS_RESTART = Event(
    "config_needs_restart", "warning", "Settings that take effect at the next start.", ("settings",)
)

DESCRIPTORS_SHORT = Event(
    "descriptors_short",
    "warning",
    "The process may open fewer files than the configuration can need: raise the limit (`LimitNOFILE`, `ulimit -n`).",
    ("limit", "needed", "connections"),
)
TLS_LOADED = Event(
    "tls_loaded",
    "info",
    "New connections get this certificate.",
    ("certificate",),
)
TLS_RELOAD_FAILED = Event(
    "tls_reload_failed",
    "error",
    "The changed files of `server.tls` are of no use; new connections get the certificate read before.",
    ("setting", "problem"),
)
TLS_KEY_EXPOSED = Event(
    "tls_key_exposed",
    "warning",
    "Every user of this machine can read the private key: `chmod 600` it.",
    ("key",),
)
TLS_HANDSHAKE_FAILED = Event(
    "tls_handshake_failed",
    "warning",
    "A client and the gateway did not agree on TLS. Said once a minute at most; `count`: since it was said before.",
    ("client", "reason", "count"),
)
CONNECTIONS_FULL = Event(
    "connections_full",
    "warning",
    "New connections wait: more would leave too few open files for engines. Said once a minute at most.",
    ("most", "reason"),
)

REQUEST_FINISHED = Event(
    "request_finished",
    "info",
    "The access line, one for each request (method `UNKNOWN`: it was not HTTP). Times are in milliseconds.",
    ("request_id", "method", "path", "status", "outcome", "duration_ms"),
    ("client", "model", "instance", "first_byte_ms", "queue_ms", "bytes_out", "attempts", "stream", "continued"),
)

STREAM_CONTINUED = Event(
    "stream_continued",
    "warning",
    "An instance failed within a stream; another one continues it (`how`: from the token ids, from the text, or anew).",
    ("request_id", "model", "instance", "reason", "how"),
    ("tokens",),
)
STREAM_INTERRUPTED = Event(
    "stream_interrupted",
    "error",
    "An instance failed within a stream that could not be continued: the client got an error event.",
    ("request_id", "model", "instance", "reason", "why"),
    ("tokens",),
)

INSTANCE_PLANNED = Event(
    "instance_planned",
    "info",
    "Room is reserved for a new instance.",
    ("instance", "model", "gpus", "footprint_mib"),
    ("evicts",),
)
INSTANCE_STARTING = Event(
    "instance_starting",
    "info",
    "The runtime starts an instance.",
    ("instance", "model"),
    ("gpus",),
)
INSTANCE_READY = Event(
    "instance_ready",
    "info",
    "An instance takes requests: it has started, or is awake again.",
    ("instance", "model"),
    ("seconds", "address"),
)
INSTANCE_FAILED = Event(
    "instance_failed",
    "error",
    "An instance died or never became ready; `log_tail` holds the engine's last lines, without secrets.",
    ("instance", "model", "reason"),
    ("failure_id", "exit_code", "log_tail"),
)
INSTANCE_FALLING_ASLEEP = Event(
    "instance_falling_asleep", "info", "An engine is told to sleep.", ("instance", "model"), ("reason",)
)
INSTANCE_ASLEEP = Event(
    "instance_asleep",
    "info",
    "An instance sleeps and still holds `asleep_mib` on each of its GPUs.",
    ("instance", "model", "asleep_mib"),
)
INSTANCE_WAKING = Event("instance_waking", "info", "An engine is told to wake up.", ("instance", "model"), ("gpus",))
INSTANCE_NOT_MOVED = Event(
    "instance_not_moved",
    "error",
    "An engine did not fall asleep or wake up when it was told to; it is stopped.",
    ("instance", "model", "reason"),
)
INSTANCE_DRAINING = Event(
    "instance_draining",
    "info",
    "No new requests to this instance; the ones in flight finish.",
    ("instance", "model"),
    ("reason",),
)
INSTANCE_STOPPING = Event(
    "instance_stopping", "info", "The runtime stops an instance.", ("instance", "model"), ("reason",)
)
INSTANCE_STOPPED = Event("instance_stopped", "info", "An instance is gone.", ("instance", "model"))
INSTANCE_STUCK = Event(
    "instance_stuck",
    "error",
    "The runtime could not end an instance. It stays in the books, and the gateway keeps trying until it is gone.",
    ("instance", "model", "problem"),
)
INSTANCE_ADOPTED = Event(
    "instance_adopted",
    "info",
    "An instance of an earlier run was taken over.",
    ("instance", "model"),
)
INSTANCE_REMOVED_STALE = Event(
    "instance_removed_stale",
    "info",
    "An instance of an earlier run did not match the configuration, or cannot be reached any more.",
    ("instance",),
    ("model", "reason"),
)
INSTANCE_SUSPECT = Event(
    "instance_suspect",
    "warning",
    "Requests to an instance failed; it is asked for its health.",
    ("instance", "model"),
    ("reason",),
)
INSTANCE_SICK = Event(
    "instance_sick",
    "warning",
    "An instance runs and does not answer its health check, or does not work (`hung`). It gets no requests, and is "
    "replaced unless it recovers.",
    ("instance", "model", "reason", "hung"),
)
ENDPOINT_UNFIT = Event(
    "endpoint_unfit",
    "warning",
    "An engine at one of `endpoints` gets no requests: it does not pass its health check, does not list the model, or "
    "sends no list that can be read.",
    ("model", "endpoint", "reason"),
)
INSTANCE_WELL = Event(
    "instance_well", "info", "A sick instance takes requests again, after `seconds`.", ("instance", "model", "seconds")
)
MODEL_LOOKS_SICK = Event(
    "model_looks_sick",
    "error",
    "More than half of a model's instances look sick: it may be the gateway or its machine, and none is replaced.",
    ("model", "sick", "instances"),
)

POISON_REQUEST = Event(
    "poison_request",
    "error",
    "A second instance died of this request, and of no other. Its client gets no such request through for `seconds`.",
    ("instance", "model", "request_id", "seconds"),
)

INSTANCE_EJECTED = Event(
    "instance_ejected",
    "warning",
    "Too many requests to an instance failed; it gets none for `seconds`, then one as a probe.",
    ("instance", "model", "reason", "seconds"),
)
INSTANCE_RESTORED = Event(
    "instance_restored", "info", "An ejected instance takes requests again.", ("instance", "model"), ("reason",)
)

MODEL_NO_ROOM = Event(
    "model_no_room",
    "warning",
    "An instance does not fit; `reason` holds the numbers.",
    ("model", "reason"),
)
MODEL_BACKOFF = Event(
    "model_backoff", "warning", "Starts failed; the next one waits for `seconds`.", ("model", "seconds", "failures")
)
EVICTION = Event(
    "eviction",
    "info",
    "A model makes room for another: it is stopped, or put to sleep (`asleep`).",
    ("model", "instance", "for_model"),
    ("asleep",),
)
IDLE_STOP = Event("idle_stop", "info", "A model was unused for `seconds` and is stopped.", ("model", "seconds"))
FOOTPRINT_MEASURED = Event(
    "footprint_measured", "info", "A footprint was measured and kept.", ("model", "footprint_mib"), ("key",)
)
FOOTPRINT_CORRECTED = Event(
    "footprint_corrected",
    "warning",
    "An engine could not start because its share of GPU memory was too small; it gets more from now on.",
    ("model", "footprint_mib", "was_mib"),
)
STATE_DIR_UNUSABLE = Event(
    "state_dir_unusable",
    "error",
    "What the gateway keeps goes to a temporary folder, and may be lost, until `state_dir` can be used.",
    ("folder", "problem", "instead"),
)
FOOTPRINT_FILE_DAMAGED = Event(
    "footprint_file_damaged",
    "warning",
    "The file of measured footprints is of no use; `problem` says why, and what became of it.",
    ("file",),
    ("problem",),
)
FOOTPRINT_FILE_NOT_WRITTEN = Event(
    "footprint_file_not_written",
    "warning",
    "Measured footprints are lost when the gateway ends, and must be measured again.",
    ("file", "problem"),
)
MEMORY_NOT_RETURNED = Event(
    "memory_not_returned",
    "warning",
    "An instance is gone, but its GPU memory is not free yet.",
    ("instance", "gpus", "seconds"),
)
GPU_PROBLEM = Event("gpu_problem", "error", "A GPU cannot be used as configured.", ("gpu", "problem"))
GPU_MEMORY_SHARED = Event(
    "gpu_memory_shared",
    "info",
    "NVML does not tell the memory of this GPU: it is taken to have the machine's, or what `gpus.memory_mib` says.",
    ("gpu", "name", "total_mib"),
)

RUNTIME_DOWN = Event("runtime_down", "error", "The runtime does not answer.", ("runtime",), ("problem",))
RUNTIME_SLOW = Event(
    "runtime_slow",
    "warning",
    "The runtime takes longer than it should over a call; it has that call's limit yet.",
    ("runtime", "call", "seconds"),
)
RUNTIME_BACK = Event("runtime_back", "info", "The runtime answers again.", ("runtime",), ("seconds",))
DOCKER_NETWORK_MISSING = Event(
    "docker_network_missing", "warning", "No engine can start until `docker.network` exists.", ("network",)
)
CONTAINER_NOT_OURS = Event(
    "container_not_ours",
    "warning",
    "A container carries this gateway's label under a name that is not its own: it is left alone.",
    ("container", "instance"),
)
IMAGE_PULL_STARTED = Event("image_pull_started", "info", "The engine's image is being pulled.", ("image",))
IMAGE_PULL_PROGRESS = Event(
    "image_pull_progress", "info", "How far the pull is.", ("image",), ("percent", "done_mib", "total_mib", "status")
)
IMAGE_PULL_FAILED = Event(
    "image_pull_failed",
    "error",
    "The image of a model is not there and could not be pulled: it is tried again later.",
    ("model", "image", "problem"),
    ("failure_id",),
)
IMAGE_PULL_ENDED = Event("image_pull_ended", "info", "A pull is given up: nobody wants the image any more.", ("image",))
IMAGE_PULLED = Event("image_pulled", "info", "The engine's image has been pulled.", ("image",), ("seconds",))

ROUTING_DECISION = Event(
    "routing_decision",
    "info",
    "Why a request went where it went: one in `decisions.log_every`. The lowest score is taken.",
    ("request_id", "model", "instance", "reason", "scores"),
)
STRATEGY_FAILED = Event(
    "strategy_failed",
    "error",
    "A strategy raised or chose a stranger; round robin took the request.",
    ("strategy", "error"),
    ("model",),
)
UNHANDLED_ERROR = Event(
    "unhandled_error",
    "error",
    "A bug in the gateway, which carries on. A repeated one is logged once a minute.",
    ("error",),
    ("where", "traceback"),
)
TRACE_INCOMPLETE = Event(
    "trace_incomplete", "warning", "The file of `record_trace` lacks requests.", ("file", "problem")
)
LOG_LINES_DROPPED = Event("log_lines_dropped", "warning", "The reader of the log was too slow.", ("count",))

TABLE: Mapping[str, Event] = {event.name: event for event in tuple(globals().values()) if isinstance(event, Event)}


def validate(line: Mapping[str, object]) -> list[str]:
    """What is wrong with a decoded log line by this table; empty: nothing."""
    name = line.get("event")
    event = TABLE.get(name) if isinstance(name, str) else None
    if event is None:
        return [f"unknown event {name!r}"]
    problems = []
    if line.get("level") != event.level:
        problems.append(f"{event.name}: level is {line.get('level')!r}, the table says {event.level!r}")
    if not _STAMP.fullmatch(str(line.get("timestamp"))):
        problems.append(f"{event.name}: timestamp {line.get('timestamp')!r} is not RFC 3339 in UTC with microseconds")
    fields = {key: value for key, value in line.items() if key not in {"timestamp", "level", "event"}}
    return problems + event.problems(fields)


def document() -> str:
    """The text of docs/logging.md."""
    rows = [
        f"| `{event.name}` | {event.level} | {event.description} | "
        f"{', '.join(f'`{name}`' for name in event.required)} | {', '.join(f'`{name}`' for name in event.optional)} |"
        for event in TABLE.values()
    ]
    return "\n".join([_INTRODUCTION, *rows, ""])


_INTRODUCTION = """\
# The log

One JSON object a line on standard output, each with `timestamp` (RFC 3339, UTC, microseconds), `level` and `event`,
and the fields of its event. Event names and fields are an interface: they are not changed without notice.

```json
{"timestamp":"2025-01-31T12:00:00.123456Z","level":"info","event":"gateway_ready","address":"http://127.0.0.1:8000"}
```

`log.format: console` writes the same lines for people (the default on a terminal); `log.level` (or `LOG_LEVEL`) says
from which level on lines are written. Any line may also carry `request_id`, `model` and `instance`. Secrets are
never logged. If the reader of the log is too slow, the gateway drops lines rather than wait, and says how many.

This page is written by `python -m vllm_gateway.telemetry.events`.

| event | level | meaning | fields | fields, where known |
|---|---|---|---|---|"""

if __name__ == "__main__":
    print(document(), end="")
