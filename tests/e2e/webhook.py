"""A webhook in a pod that rewrites the image of every pod in chosen namespaces, as mirrors do."""

from __future__ import annotations

import base64
from typing import Any

from e2e_kube import Kube, Object
from e2e_tls_pod import TlsPod

NAME = "rewriter"
SERVER = """
import base64, json
from http.server import BaseHTTPRequestHandler

class Rewrite(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        patch = [
            {"op": "replace", "path": f"/spec/containers/{i}/image",
             "value": "docker.io/library/" + container["image"]}
            for i, container in enumerate(asked["object"]["spec"]["containers"])
            if "/" not in container["image"]
        ]
        said = {"uid": asked["uid"], "allowed": True, "patchType": "JSONPatch",
                "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                           "response": said}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

serve(Rewrite)
"""


class Webhook:
    """The server's pod in a namespace, and its registration."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._server = kube, TlsPod(kube, namespace, NAME, SERVER)

    def start(self) -> None:
        """Runs it and registers it for namespaces labelled e2e.lamella.dev/rewrite=yes."""
        self._server.start()
        self._kube.apply(_registration(self._server.namespace, self._server.certificate))

    def remove(self) -> None:
        self._kube.delete("mutatingwebhookconfigurations", f"e2e-{NAME}")


def _registration(namespace: str, certificate: str) -> Object:
    rule: Any = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"e2e-{NAME}"},
        "webhooks": [
            {
                "name": "rewrite.e2e.lamella.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "namespaceSelector": {"matchLabels": {"e2e.lamella.dev/rewrite": "yes"}},
                "rules": [rule],
                "clientConfig": {
                    "service": {"name": NAME, "namespace": namespace},
                    "caBundle": base64.b64encode(certificate.encode()).decode(),
                },
            }
        ],
    }
