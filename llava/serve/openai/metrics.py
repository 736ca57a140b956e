"""Numbers for Prometheus: requests, answers, and what the engine does now; in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llava.inference.engine import Ticket
from llava.serve.openai.models import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# name of a number of EngineStats -> what it says; names that end in _total count from the start
_GAUGES = {
    "running": "Answers that are being generated",
    "waiting": "Requests in the queue",
    "max_running": "Answers that may be generated at a time",
    "max_waiting": "Places in the queue",
    "kv_bytes": "Bytes of the KV caches of running answers",
    "kv_budget": "Bytes that KV caches of running answers may take",
    "cache_bytes": "Bytes that are kept for later prompts",
    "cache_budget": "Bytes that may be kept for later prompts",
    "cache_entries": "Dialogs and images that are kept",
    "tokens_per_second": "Generated tokens per second, over the last seconds",
}
_COUNTERS = {
    "steps_total": "Decode steps",
    "generated_tokens_total": "Generated tokens",
    "prompt_tokens_total": "Positions of prompts",
    "cached_tokens_total": "Positions of prompts that were not computed again",
    "prefix_hits_total": "Prompts whose beginning was kept",
    "prefix_misses_total": "Prompts whose beginning was not kept",
    "image_hits_total": "Images whose features were kept",
    "image_misses_total": "Images whose features were computed",
}


class EngineCollector:
    """Reads the engine's numbers when they are asked for."""

    def __init__(self, engine: Models) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's numbers."""
        yield GaugeMetricFamily("llava_engine_alive", "1 while the engine takes requests", self.engine.alive)
        stats = self.engine.stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"llava_engine_{name}", text, getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"llava_engine_{name}", text, getattr(stats, name))
        ended = CounterMetricFamily("llava_engine_requests", "Requests that have ended", labels=["reason"])
        for reason, count in stats.requests_total.items():
            ended.add_metric([reason], count)
        yield ended


class ServerMetrics:
    """What the server counts itself; labels are routes and statuses, never what a client wrote."""

    def __init__(self, engine: Models) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.requests = Counter(
            "llava_http_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "llava_http_request_seconds",
            "Time from a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "llava_time_to_first_token_seconds",
            "Time from a request's place in the queue to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request of a route (its pattern)."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def answered(self, tickets: Sequence[Ticket]) -> None:
        """Count the answers of a request."""
        for ticket in tickets:
            if ticket.time_to_first_token is not None:
                self.first_token.observe(ticket.time_to_first_token)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' form."""
        return generate_latest(self.registry)
