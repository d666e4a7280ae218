"""What the gateway counts and times, for Prometheus at /metrics.

Knows no request. One registry per gateway, so that two in one process (tests) do not share.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Times are in seconds. ``endpoint`` is the route's path, ``code`` the HTTP status."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lamella_requests", "Requests answered.", ["endpoint", "code"], registry=registry
        )
        self.live = Gauge("lamella_requests_live", "Requests being answered.", registry=registry)
        self.streams = Gauge(
            "lamella_streams_live", "Answers that are being streamed.", registry=registry
        )
        self.held = Gauge(
            "lamella_requests_held",
            "Requests that no pipeline has: there is none, or all are full.",
            registry=registry,
        )
        self.queued_tokens = Gauge(
            "lamella_queued_tokens",
            "Prompt tokens of this gateway's requests that have no token yet, held or submitted.",
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "lamella_prompt_tokens", "Tokens of prompts taken in.", registry=registry
        )
        self.generated_tokens = Counter(
            "lamella_generated_tokens", "Tokens received from replicas.", registry=registry
        )
        self.first_token_s = Histogram(
            "lamella_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.per_token_s = Histogram(
            "lamella_time_per_output_token_seconds",
            "From first to last token of an answer, per token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.cancelled = Counter(
            "lamella_requests_cancelled",
            "Requests given up before the model was done: hang-ups and stop strings.",
            registry=registry,
        )
        self.resubmitted = Counter(
            "lamella_requests_resubmitted",
            "Requests sent again because a replica was lost.",
            registry=registry,
        )
        self.replays = Counter(
            "lamella_replays_asked", "Gaps in a request's tokens.", registry=registry
        )
        self.ready = Gauge(
            "lamella_replica_ready", "1 when a replica would serve.", ["address"], registry=registry
        )

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
