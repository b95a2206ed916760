"""What a monitor reads at /metrics, in Prometheus' format."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from calibrate.pipelines.serving.scheduler import Scheduler

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counts what one server does."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        of_ours: dict[str, Any] = {"namespace": "calibrate", "registry": self._registry}
        self.requests = Counter(
            "requests", "Requests by route and HTTP status", ["route", "status"], **of_ours
        )
        self.gone = Counter("disconnected", "Requests whose client left first", **of_ours)
        self.tokens = Counter("reply_tokens", "Tokens of replies, by model", ["model"], **of_ours)
        self.seconds = Histogram(
            "request_seconds", "From a request to its last token", buckets=SECONDS, **of_ours
        )
        self.first = Histogram(
            "first_piece_seconds", "From a request to its first piece", buckets=SECONDS, **of_ours
        )
        Gauge("running_replies", "Replies in the batch", **of_ours).set_function(
            lambda: scheduler.running
        )
        Gauge("waiting_requests", "Requests in the queue", **of_ours).set_function(
            lambda: scheduler.waiting
        )

    def text(self) -> bytes:
        """All of it."""
        return bytes(generate_latest(self._registry))
