"""A pod that serves TLS from a script, with its Service: webhooks and aggregated API servers."""

from __future__ import annotations

from certificates import self_signed
from cryptography import x509
from e2e_kube import Kube, Object, wait_for
from e2e_release import WORKER

SERVE = """
import ssl
from http.server import ThreadingHTTPServer

def serve(handler):
    server = ThreadingHTTPServer(("", 8443), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/server/tls.crt", "/server/tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
"""


class TlsPod:
    """``script`` defines a handler class and ends in ``serve(Handler)``; see `SERVE`."""

    def __init__(self, kube: Kube, namespace: str, name: str, script: str) -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        pem, key = self_signed(name, [x509.DNSName(f"{name}.{namespace}.svc")])
        self.certificate, self._key = pem.decode(), key.decode()
        self._script = SERVE + script

    def start(self) -> None:
        """Runs it and waits until it accepts connections."""
        self.kube.apply(*self._manifests())

        def ready() -> bool:
            pod = self.kube.get("pods", self.name, self.namespace) or {}
            statuses = pod.get("status", {}).get("containerStatuses", [])
            return bool(statuses) and all(status["ready"] for status in statuses)

        wait_for(f"the pod of {self.name} is ready", ready, 60)

    def _manifests(self) -> list[Object]:
        meta: Object = {"name": self.name, "namespace": self.namespace}
        container = {
            "name": "server",
            "image": WORKER,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "/server/server.py"],
            "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
            "volumeMounts": [{"name": "files", "mountPath": "/server"}],
        }
        files = {"server.py": self._script, "tls.crt": self.certificate, "tls.key": self._key}
        return [
            {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": files},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {
                    "selector": {"app": self.name},
                    "ports": [{"port": 443, "targetPort": 8443}],
                },
            },
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**meta, "labels": {"app": self.name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                    "volumes": [{"name": "files", "secret": {"secretName": self.name}}],
                },
            },
        ]
