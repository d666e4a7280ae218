"""A webhook in a pod that rewrites the image of every pod in chosen namespaces, as mirrors do."""

from __future__ import annotations

import base64
import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from e2e_kube import Kube, Object, wait_for
from e2e_release import WORKER

NAME = "rewriter"
SERVER = """
import base64, json, ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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

server = ThreadingHTTPServer(("", 8443), Rewrite)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/webhook/tls.crt", "/webhook/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


class Webhook:
    """The server's pod in a namespace, and its registration."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace

    def start(self) -> None:
        """Runs it and registers it for namespaces labelled e2e.lamella.dev/rewrite=yes."""
        host = f"{NAME}.{self._namespace}.svc"
        certificate, key = _certificate(host)
        self._kube.apply(*_manifests(self._namespace, certificate, key))

        def ready() -> bool:
            pod = self._kube.get("pods", NAME, self._namespace) or {}
            statuses = pod.get("status", {}).get("containerStatuses", [])
            return bool(statuses) and all(status["ready"] for status in statuses)

        wait_for("the webhook's pod is ready", ready, 60)
        self._kube.apply(_registration(self._namespace, certificate))

    def remove(self) -> None:
        self._kube.delete("mutatingwebhookconfigurations", f"e2e-{NAME}")


def _manifests(namespace: str, certificate: str, key: str) -> list[Object]:
    meta: Object = {"name": NAME, "namespace": namespace}
    container = {
        "name": "server",
        "image": WORKER,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/webhook/server.py"],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
        "volumeMounts": [{"name": "files", "mountPath": "/webhook"}],
    }
    files = {"server.py": SERVER, "tls.crt": certificate, "tls.key": key}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": files},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": {"app": NAME}, "ports": [{"port": 443, "targetPort": 8443}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**meta, "labels": {"app": NAME}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
                "volumes": [{"name": "files", "secret": {"secretName": NAME}}],
            },
        },
    ]


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


def _certificate(host: str) -> tuple[str, str]:
    """A certificate that signs itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), pem.decode()
