"""An autoscaler of pipelines, and a metrics API server in a pod that says what it is told."""

from __future__ import annotations

import base64

from e2e_kube import Kube, Object
from e2e_tls_pod import TlsPod

NAME, METRIC = "queue-metrics", "lamella_queued_tokens"
GROUP = "external.metrics.k8s.io"
SERVER = """
import datetime, json, pathlib
from http.server import BaseHTTPRequestHandler

class Metrics(BaseHTTPRequestHandler):
    def do_GET(self):
        version = "external.metrics.k8s.io/v1beta1"
        if "/namespaces/" in self.path:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            file = pathlib.Path("/tmp/value")
            item = {"metricName": "lamella_queued_tokens", "metricLabels": {}, "timestamp": now,
                    "value": file.read_text().strip() if file.exists() else "0"}
            said = {"kind": "ExternalMetricValueList", "apiVersion": version,
                    "metadata": {}, "items": [item]}
        else:
            said = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
                    "resources": []}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

serve(Metrics)
"""


class QueueMetrics:
    """Tells the cluster's autoscalers how many tokens are queued."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._server = kube, TlsPod(kube, namespace, NAME, SERVER)

    def start(self) -> None:
        self._server.start()
        certificate = base64.b64encode(self._server.certificate.encode()).decode()
        self._kube.apply(
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": f"v1beta1.{GROUP}"},
                "spec": {
                    "group": GROUP,
                    "version": "v1beta1",
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "caBundle": certificate,
                    "service": {"name": NAME, "namespace": self._server.namespace},
                },
            }
        )

    def say(self, tokens: int) -> None:
        self._kube.run(
            "-n", self._server.namespace, "exec", NAME, "--", "sh", "-c",
            f"echo {tokens} > /tmp/value",
        )  # fmt: skip

    def remove(self) -> None:
        self._kube.delete("apiservices", f"v1beta1.{GROUP}")


def autoscaler(namespace: str, model: str, most: int, tokens_each: int) -> Object:
    """Between one pipeline and ``most``, one for each ``tokens_each`` that wait."""
    metric = {
        "metric": {"name": METRIC},
        "target": {"type": "AverageValue", "averageValue": str(tokens_each)},
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": model, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "lamella.dev/v1alpha1",
                "kind": "ShardedModel",
                "name": model,
            },
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [{"type": "External", "external": metric}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
