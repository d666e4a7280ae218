"""The operator's numbers for Prometheus, in a registry of their own.

Knows names and labels; the values are set by those who know them, or read when somebody asks.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.reconciling.reconcile import GONE, STATES, Outcome

PREFIX = "lamella_operator"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._states: dict[ModelKey, str] = {}
        self.reconciles = self._counter("reconciles", "Reconciles by result", "result")
        self.errors = self._counter("reconcile_errors", "Reconciles that failed, by kind", "kind")
        self.writes = self._counter("writes", "Objects and status written by reconciles")
        self.requests = self._counter(
            "api_requests", "Requests to the API server", "verb", "resource", "code"
        )
        self.restarts = self._counter("watch_restarts", "Watches begun again", "namespace")
        self.found = self._counter(
            "resync_found", "Models woken by a resync: no event told of them"
        )
        self.duration = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "Duration of a reconcile",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.delay = Histogram(
            f"{PREFIX}_queue_seconds",
            "From waking to the start of a reconcile",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.models = self._gauge("models", "Models by state", "state")
        self.watch_up = self._gauge("watch_up", "1 while a namespace is watched", "namespace")
        self.lag = self._gauge(
            "watch_lag_seconds", "For how long a watch owes what a LIST showed", "namespace"
        )
        self.age = self._gauge(
            "resync_age_seconds",
            "Since a namespace was listed with success; -1: never",
            "namespace",
        )
        self.listed = self._gauge(
            "resync_problem", "1 while a namespace cannot be listed", "namespace"
        )

    def measure(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"{PREFIX}_{name}", help_text, registry=self.registry).set_function(value)

    def request(self, verb: str, resource: str, code: int) -> None:
        """One attempt at the API server; code 0 is no answer."""
        self.requests.labels(verb, resource, str(code)).inc()

    def outcome(self, key: ModelKey, outcome: Outcome) -> None:
        """A reconcile went well."""
        self.reconciles.labels("ok").inc()
        self.writes.inc(outcome.writes)
        if outcome.state == GONE:
            self._states.pop(key, None)
        else:
            self._states[key] = outcome.state

    def failure(self, kind: str) -> None:
        """A reconcile failed; ``kind`` is an error's short name."""
        self.reconciles.labels("error").inc()
        self.errors.labels(kind).inc()

    def text(self) -> bytes:
        """What /metrics answers."""
        counts = Counts(self._states.values())
        for state in STATES:
            self.models.labels(state).set(counts[state])
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", help_text, labels, registry=self.registry)
