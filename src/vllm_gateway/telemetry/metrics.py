# SPDX-License-Identifier: Apache-2.0
"""Counts requests as cheaply as a list and a dictionary can; the numbers become Prometheus text only when scraped."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Seconds. LLM replies take from tens of milliseconds to many minutes, cold starts included.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)


@dataclass(slots=True)
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        found: list[tuple[str, float]] = []
        so_far = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append((bound, so_far))
        return found


@dataclass(slots=True)
class ModelRequests:
    """What has been counted for one model."""

    duration: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    bytes_out: int = 0
    retries: int = 0
    continued: int = 0


class RequestMetrics(Collector):
    """A collector for prometheus_client. Models are those of the configuration: labels cannot grow without bound."""

    def __init__(self) -> None:
        self._models: dict[str, ModelRequests] = {}
        self._outcomes: dict[tuple[str, int, str], int] = {}
        self._limits: dict[tuple[str, str], int] = {}
        self.connections: Callable[[], int] = int
        """How many of clients there are."""
        self.connections_most = 0

    def count(
        self,
        model: str | None,
        status: int,
        outcome: str,
        *,
        duration_s: float,
        queue_s: float,
        first_byte_s: float | None,
        bytes_out: int,
        attempts: int,
    ) -> None:
        key = (model or "", status, outcome)
        self._outcomes[key] = self._outcomes.get(key, 0) + 1
        if model is None:
            return
        of_model = self._models.get(model)
        if of_model is None:
            of_model = self._models[model] = ModelRequests()
        of_model.duration.observe(duration_s)
        if queue_s:
            of_model.queue.observe(queue_s)
        else:
            of_model.queue.counts[0] += 1
        if first_byte_s is not None:
            of_model.first_byte.observe(first_byte_s)
        of_model.bytes_out += bytes_out
        of_model.retries += max(attempts - 1, 0)

    def count_trouble(self, model: str, limits: list[str], continued: int) -> None:
        """Of a request counted before: the limits that were reached, and how often its stream was continued."""
        for code in limits:
            self._limits[model, code] = self._limits.get((model, code), 0) + 1
        if model in self._models:
            self._models[model].continued += continued

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "vllm_gateway_requests", "Requests answered.", labels=["model", "status", "outcome"]
        )
        for (model, status, outcome), count in self._outcomes.items():
            requests.add_metric([model, str(status), outcome], count)
        yield requests
        for name, text in (
            ("duration", "From the request's head to the reply's last byte."),
            ("first_byte", "From the request being sent to an instance to the head of its reply."),
            ("queue", "The wait for an instance, cold starts included."),
        ):
            family = HistogramMetricFamily(f"vllm_gateway_request_{name}_seconds", text, labels=["model"])
            for model, of_model in self._models.items():
                histogram: Histogram = getattr(of_model, name)
                family.add_metric([model], histogram.buckets(), histogram.total)
            yield family
        sent = CounterMetricFamily("vllm_gateway_reply_bytes", "Bytes of replies carried.", labels=["model"])
        retries = CounterMetricFamily("vllm_gateway_request_retries", "Requests tried again.", labels=["model"])
        continued = CounterMetricFamily(
            "vllm_gateway_streams_continued", "Times that another instance went on with a stream.", labels=["model"]
        )
        for model, of_model in self._models.items():
            continued.add_metric([model], of_model.continued)
            sent.add_metric([model], of_model.bytes_out)
            retries.add_metric([model], of_model.retries)
        yield sent
        yield retries
        yield continued
        limits = CounterMetricFamily(
            "vllm_gateway_limits_reached", "Parts of requests that took too long.", labels=["model", "code"]
        )
        for (model, code), count in self._limits.items():
            limits.add_metric([model, code], count)
        yield limits
        yield GaugeMetricFamily("vllm_gateway_connections", "Of clients, idle ones included.", self.connections())
        yield GaugeMetricFamily("vllm_gateway_connections_most", "So many there may be.", self.connections_most)
