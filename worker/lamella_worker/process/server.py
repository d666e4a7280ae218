"""Probes, metrics and progress of one stage over HTTP.

Knows only `Telemetry`; it decides nothing. /healthz: this process answers. /readyz: stage 0, that
requests are really served; another stage, that its slice is loaded. /status: the snapshot as JSON.
/metrics: the same numbers for Prometheus.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lamella_contract import listening
from lamella_worker.process import ring_metrics
from lamella_worker.process.telemetry import Telemetry

log = logging.getLogger(__name__)

_COUNTERS = {
    "steps": "Steps computed",
    "rows": "Token rows computed",
    "frames_stale": "Frames of an older epoch, dropped",
    "frames_refused": "Frames that could not be parsed or are not ours",
    "frames_lost": "Frames that no peer took",
    "steps_failed": "Steps that this stage could not compute",
    "resyncs": "Epochs that this stage has entered",
    "tokens": "New tokens handed to gateways",
    "restarts": "Processes of this stage that ended before the present one",
    "resolver_failures": "Look-ups of stage 0's name that failed",
    "retired_refusals": "Processes refused because a newer one has their place",
}


class TelemetryCollector(Collector):
    """Reads the counters when Prometheus asks, so that a step pays nothing for them."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        telemetry, stage = self._telemetry, str(self._telemetry.stage)
        for name, text in _COUNTERS.items():
            value = getattr(telemetry.counters, name)
            counter = CounterMetricFamily(f"lamella_{name}", text, labels=["stage"])
            counter.add_metric([stage], value)
            yield counter
        for kind, nanoseconds in (
            ("compute", telemetry.counters.compute_ns),
            ("idle", telemetry.counters.idle_ns),
        ):
            counter = CounterMetricFamily(
                f"lamella_stage_{kind}_seconds", f"Seconds of {kind}", labels=["stage"]
            )
            counter.add_metric([stage], nanoseconds / 1e9)
            yield counter
        if telemetry.stage == 0:
            yield from ring_metrics.metrics(telemetry.ring)
        gauges = {
            "lamella_ready": (float(telemetry.ready), "1 when /readyz is true"),
            "lamella_epoch": (float(telemetry.epoch), "The epoch this stage is in"),
            "lamella_slice_bytes": (float(telemetry.load.bytes_total), "Bytes of the slice"),
            "lamella_slice_read_ratio": (telemetry.load.read_ratio, "Bytes read / bytes needed"),
        }
        stats = telemetry.snapshot()["scheduler"]
        gauges |= {
            f"lamella_scheduler_{name}": (float(value), "Of the scheduler on stage 0")
            for name, value in stats.items()
            if isinstance(value, int)
        }
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["stage"])
            gauge.add_metric([stage], value)
            yield gauge


class StageServer:
    """Serves one stage's telemetry from a daemon thread."""

    def __init__(self, address: str, telemetry: Telemetry) -> None:
        host, _, port = address.rpartition(":")
        host = listening.host_of(host.strip("[]"))
        registry = CollectorRegistry()
        registry.register(TelemetryCollector(telemetry))
        make = _Server6 if ":" in host else _Server
        self._server = make((host, int(port)), _handler_class(telemetry, registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The bound TCP port."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        listening.open_to_both(self.socket, str(self.server_address[0]))
        # HTTPServer would look its own name up, which may take long where there is no DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler_class(
    telemetry: Telemetry, registry: CollectorRegistry
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # a client that says nothing does not keep its thread

        def do_GET(self) -> None:
            status, kind, body = _answer(self.path, telemetry, registry)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format % args)

    return Handler


def _answer(path: str, telemetry: Telemetry, registry: CollectorRegistry) -> tuple[int, str, bytes]:
    """(status, content type, body) of one GET."""
    if path == "/healthz":
        return 200, "text/plain", b"ok\n"
    if path == "/readyz":
        text = "ready" if telemetry.ready else telemetry.reason
        return 200 if telemetry.ready else 503, "text/plain", f"{text}\n".encode()
    if path == "/status":
        return 200, "application/json", json.dumps(telemetry.snapshot()).encode()
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4", generate_latest(registry)
    return 404, "text/plain", b"not found: try /healthz, /readyz, /status or /metrics\n"
