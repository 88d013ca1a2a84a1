# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics`: the status page and the request counters as Prometheus reads them."""

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllm_gateway.control.status import Status
from vllm_gateway.telemetry.metrics import RequestMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("starting", "ready", "falling_asleep", "sleeping", "waking", "draining", "stopping", "failed")


class _FleetCollector(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        gpu = GaugeMetricFamily("vllm_gateway_gpu_memory_mib", "Memory of a GPU.", labels=["gpu", "kind"])
        for one in status.gpus:
            for kind in ("total", "reserved", "used", "foreign"):
                gpu.add_metric([one.id, kind], getattr(one, f"{kind}_mib"))
        yield gpu
        host = GaugeMetricFamily(
            "vllm_gateway_host_memory_mib", "The machine's memory for what sleeps, or has slept.", labels=["kind"]
        )
        host.add_metric(["limit"], status.host_memory.limit_mib)
        host.add_metric(["held"], status.host_memory.held_mib)
        yield host
        wanted = GaugeMetricFamily("vllm_gateway_instances_wanted", "As configured.", labels=["model"])
        waiting = GaugeMetricFamily("vllm_gateway_requests_waiting", "In the model's queue.", labels=["model"])
        instances = GaugeMetricFamily("vllm_gateway_instances", "Instances by state.", labels=["model", "state"])
        for name, model in status.models.items():
            wanted.add_metric([name], model.wanted)
            waiting.add_metric([name], model.queued)
            states = [one.state for one in status.active_containers_by_name.values() if one.model == name]
            for state in _STATES:
                instances.add_metric([name, state], states.count(state))
        yield wanted
        yield waiting
        yield instances
        yield from _failures(status)
        in_flight = GaugeMetricFamily(
            "vllm_gateway_requests_in_flight", "On each instance.", labels=["model", "instance"]
        )
        for shown in status.active_containers_by_name.values():
            in_flight.add_metric([shown.model, shown.name], shown.in_flight)
        yield in_flight


def _failures(status: Status) -> Iterator[Metric]:
    denied = CounterMetricFamily(
        "vllm_gateway_retries_denied", "Failed requests not tried again: too many had been.", labels=["model"]
    )
    ejections = CounterMetricFamily(
        "vllm_gateway_instance_ejections", "Instances that got no requests for a while.", labels=["model"]
    )
    ejected = GaugeMetricFamily("vllm_gateway_instances_ejected", "They get no requests now.", labels=["model"])
    sick = GaugeMetricFamily(
        "vllm_gateway_instances_sick", "They run, and do not answer or do not work.", labels=["model"]
    )
    for name, model in status.models.items():
        denied.add_metric([name], model.retries_denied)
        ejections.add_metric([name], model.ejections)
        health = [one.health for one in status.active_containers_by_name.values() if one.model == name]
        ejected.add_metric([name], health.count("ejected"))
        sick.add_metric([name], health.count("sick"))
    yield sick
    yield denied
    yield ejections
    yield ejected


class _TaskCollector(Collector):
    """A number that only rises tells of a leak before the memory does."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("vllm_gateway_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))


class MetricsPage:
    """Renders on demand; nothing is kept for it on the request path but the counters."""

    def __init__(self, requests: RequestMetrics, status: Callable[[], Status]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(requests)
        self._registry.register(_FleetCollector(status))
        self._registry.register(_TaskCollector())

    def render(self) -> bytes:
        return generate_latest(self._registry)
