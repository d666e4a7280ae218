"""`RingTimes` for Prometheus, made when it asks. Stage 0's metrics: it alone sees every stage."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from lamella_worker.process.ring_times import HOP_BUCKETS_NS, RingTimes


def metrics(times: RingTimes) -> Iterator[Metric]:
    """Seconds of every stage, the hops' latency, and the roofline."""
    for kind, text, totals in (
        ("compute", "Seconds that each stage computed, as its steps told", times.compute_ns),
        ("idle", "Seconds that each stage waited for a step", times.idle_ns),
        ("bubble", "Of these, seconds in which there was work", times.bubble_ns),
    ):
        counter = CounterMetricFamily(f"lamella_ring_{kind}_seconds", text, labels=["of_stage"])
        for stage, nanoseconds in enumerate(totals):
            counter.add_metric([str(stage)], nanoseconds / 1e9)
        yield counter
    bounds = [*(str(ns / 1e9) for ns in HOP_BUCKETS_NS), "+Inf"]
    counts = list(times.hop_counts)
    yield HistogramMetricFamily(
        "lamella_hop_seconds",
        "Time of a step beyond computing, per hop, of steps that were alone in the ring",
        buckets=list(zip(bounds, accumulate(counts), strict=True)),
        sum_value=times.hop_ns / 1e9,
    )
    step = GaugeMetricFamily(
        "lamella_decode_step_seconds",
        "Mean time of a step that only decodes, by its rows",
        labels=["of_stage", "rows"],
    )
    for rows, each in times.decode_s().items():
        for stage, seconds in enumerate(each):
            step.add_metric([str(stage), str(rows)], seconds)
    yield step
    roofline = GaugeMetricFamily(
        "lamella_roofline_tokens_per_second",
        "What the stages' own step times allow, by requests that decode at once",
        labels=["requests"],
    )
    for requests, rate in times.roofline().items():
        roofline.add_metric([str(requests)], rate)
    yield roofline
