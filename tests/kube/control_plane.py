"""A real control plane for tests: etcd, kube-apiserver and kube-controller-manager on loopback.

There is no scheduler and no node: pods are objects that stay Pending until a test says otherwise.
The controllers are those that make what the operator relies on come true: garbage collection,
namespaces, quotas, service accounts, disruption budgets, Deployments and their pods.

::

    plane = ControlPlane(programs, folder)
    plane.start()                              # about 5 seconds
    plane.kubeconfig                           # of an admin
    plane.api.request("GET", "/api/v1/pods")   # as an admin, without a client library
    with plane.api_server_gone(): ...          # stopped, then started again on the same port
    with plane.api_server_frozen(): ...        # SIGSTOP: connections open, nothing answers
    plane.kubeconfig_of_account("ns", "name")
    plane.kubeconfig_with(rules, namespace="ns")
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import signal
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from kube_processes import LOOPBACK, Program, wait_for, write_certificate

from lamella.machine import free_ports

Object = dict[str, Any]

CRD = Path(__file__).parents[2] / "crds" / "shardedmodels.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ADMIN_TOKEN = "admin-of-the-tests"
_REOPENING = "storage is (re)initializing"  # for a moment after a schema changed
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "resourcequota-controller",
    "serviceaccount-controller",
    "disruption-controller",
    "deployment-controller",
    "replicaset-controller",
)


class ApiError(Exception):
    """An answer of the API server that is no success: ``code``, ``reason`` and its message."""

    def __init__(self, code: int, body: Mapping[str, Any]) -> None:
        super().__init__(body.get("message", str(body)))
        self.code = code
        self.reason = body.get("reason", "")


class Api:
    """Plain requests to the API server under one token."""

    def __init__(self, url: str, authority: Path, token: str, timeout_s: float = 20) -> None:
        self._client = httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=str(authority)),
            headers={"authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def request(self, method: str, path: str, body: object = None, **params: str) -> Object:
        """One request; raises `ApiError` for what the server refuses."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return self._send(method, path, body, kind, params)

    def apply(self, path: str, body: Object, manager: str = "tests", **params: str) -> Object:
        """Server-side apply at ``path``, the object's own."""
        query = {"fieldManager": manager, "force": "true", **params}
        return self._send("PATCH", path, body, "application/apply-patch+yaml", query)

    def ready(self) -> bool:
        """Whether the API server answers and says that it is ready."""
        try:
            return self._client.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def exists(self, path: str) -> bool:
        return self._client.get(path).status_code == 200

    def _send(
        self, method: str, path: str, body: object, kind: str, params: Mapping[str, str]
    ) -> Object:
        content = None if body is None else json.dumps(body)
        headers = {"content-type": kind, "accept": "application/json"}

        def served() -> httpx.Response | None:
            answer = self._client.request(
                method, path, content=content, params=params, headers=headers
            )
            return None if _REOPENING in answer.text else answer

        answer = wait_for(served, f"{path} is served")
        found: Object = answer.json()
        if answer.is_error:
            raise ApiError(answer.status_code, found)
        return found


class ControlPlane:
    """The three programs of ``programs``, with all their state in ``folder``."""

    def __init__(
        self, programs: Path, folder: Path, *, controllers: Sequence[str] = CONTROLLERS
    ) -> None:
        self.folder = folder
        self.programs = programs
        etcd, peers, port = free_ports(3)
        self.etcd_url = f"http://{LOOPBACK}:{etcd}"
        self.url = f"https://{LOOPBACK}:{port}"
        self.authority = folder / "server.crt"
        self.kubeconfig = folder / "admin.kubeconfig"
        self._key = folder / "server.key"
        self._count = itertools.count()
        write_certificate(self.authority, self._key)
        self.api = Api(self.url, self.authority, ADMIN_TOKEN)
        self.etcd = self._program("etcd", *self._etcd_flags(f"http://{LOOPBACK}:{peers}"))
        self.api_server = self._program("kube-apiserver", *self._api_server_flags(port))
        self.controllers = self._program(
            "kube-controller-manager", *self._controller_flags(controllers)
        )

    def start(self) -> None:
        """Start everything; returns when the custom resource can be used."""
        (self.folder / "tokens.csv").write_text(f"{ADMIN_TOKEN},admin,admin,system:masters\n")
        self._write_kubeconfig(self.kubeconfig, ADMIN_TOKEN)
        self.etcd.start()
        self.start_api_server()
        self.apply_crd(yaml.safe_load(CRD.read_text()))
        # After the custom resource: the garbage collector looks for new kinds only every 30 s.
        self.controllers.start()

    def close(self) -> None:
        """Stop everything, and free the disk that etcd has set aside."""
        for program in (self.controllers, self.api_server, self.etcd):
            program.stop()
        self.api.close()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def apply_crd(self, definition: Object) -> None:
        """Create or replace a custom resource definition, and wait until it is served."""
        path = f"{CRDS}/{definition['metadata']['name']}"
        self.api.apply(path, definition)
        spec = definition["spec"]
        version = spec["versions"][0]["name"]
        served = f"/apis/{spec['group']}/{version}/{spec['names']['plural']}"

        def established() -> bool:
            conditions = self.api.request("GET", path).get("status", {}).get("conditions")
            said = {each["type"]: each["status"] for each in conditions or ()}
            return said.get("Established") == "True" and self.api.exists(served)

        wait_for(established, f"{path} is Established")

    # -- faults ----------------------------------------------------------------------------------

    def start_api_server(self) -> None:
        self.api_server.start()
        self.api_server.wait_until(self.api.ready)

    def stop_api_server(self) -> None:
        """At once and without a goodbye; `start_api_server` brings it back on the same port."""
        self.api_server.stop()

    @contextmanager
    def api_server_gone(self) -> Iterator[None]:
        """Nothing listens inside; afterwards the API server is ready again."""
        self.stop_api_server()
        try:
            yield
        finally:
            self.start_api_server()

    @contextmanager
    def api_server_frozen(self) -> Iterator[None]:
        """Inside, connections are taken and stay open, and nothing answers."""
        self.api_server.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.api_server.send(signal.SIGCONT)
            self.api_server.wait_until(self.api.ready)

    def restore(self) -> None:
        """Everything runs again, whatever a test that failed left behind."""
        for program in (self.etcd, self.api_server, self.controllers):
            program.send(signal.SIGCONT)
            program.start()
        self.api_server.wait_until(self.api.ready)

    def forget_history(self) -> None:
        """Compact etcd and restart the API server: old resourceVersions answer 410 Gone."""
        empty = base64.b64encode(b"\0").decode()
        with httpx.Client(base_url=self.etcd_url, timeout=20, trust_env=False) as etcd:
            found = etcd.post("/v3/kv/range", json={"key": empty, "limit": 1}).json()
            revision = found["header"]["revision"]
            etcd.post("/v3/kv/compaction", json={"revision": revision, "physical": True})
        with self.api_server_gone():
            pass

    # -- who may do what --------------------------------------------------------------------------

    def kubeconfig_of_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig that speaks as a ServiceAccount, for an hour."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = self.api.request("POST", path, body)["status"]["token"]
        kubeconfig = self.folder / f"{namespace}-{name}-{next(self._count)}.kubeconfig"
        self._write_kubeconfig(kubeconfig, token)
        return kubeconfig

    def kubeconfig_with(
        self, rules: Sequence[Mapping[str, Any]], *, namespace: str, everywhere: bool = False
    ) -> Path:
        """A kubeconfig of a new ServiceAccount in ``namespace`` that may do what ``rules`` say.

        They hold in the namespace, or with ``everywhere`` in the whole cluster.
        """
        name = f"tests-{namespace}-{next(self._count)}"
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        self.api.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        kind = "ClusterRole" if everywhere else "Role"
        where = RBAC if everywhere else f"{RBAC}/namespaces/{namespace}"
        group = "rbac.authorization.k8s.io"
        base = {"apiVersion": f"{group}/v1", "metadata": {"name": name}}
        role = {**base, "kind": kind, "rules": [dict(rule) for rule in rules]}
        binding = {
            **base,
            "kind": f"{kind}Binding",
            "roleRef": {"apiGroup": group, "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        self.api.request("POST", f"{where}/{kind.lower()}s", role)
        self.api.request("POST", f"{where}/{kind.lower()}bindings", binding)
        return self.kubeconfig_of_account(namespace, name)

    # -- the programs -----------------------------------------------------------------------------

    def _program(self, name: str, *flags: str) -> Program:
        return Program(self.folder / f"{name}.log", str(self.programs / name), *flags)

    def _etcd_flags(self, peers: str) -> tuple[str, ...]:
        return (
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _api_server_flags(self, port: int) -> tuple[str, ...]:
        return (
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--tls-cert-file={self.authority}",
            f"--tls-private-key-file={self._key}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-key-file={self._key}",
            f"--service-account-signing-key-file={self._key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--authorization-mode=RBAC",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        )

    def _controller_flags(self, controllers: Sequence[str]) -> tuple[str, ...]:
        return (
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(controllers)}",
            f"--service-account-private-key-file={self._key}",
            f"--root-ca-file={self.authority}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        )

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        authority = base64.b64encode(self.authority.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "tests", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "current-context": "tests",
        }
        path.write_text(yaml.safe_dump(document))
        path.chmod(0o600)
