"""What the chart says to other parts of the project is what they understand."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from chart_rendering import CHART, Object, one

from lamella_contract import names
from lamella_gateway.metrics import Metrics
from lamella_operator.reconciling.permissions import PERMISSIONS
from lamella_operator.running import flags
from lamella_operator.running.metrics import Metrics as OperatorMetrics
from lamella_operator.settings import Settings
from lamella_worker.process.server import TelemetryCollector
from lamella_worker.process.telemetry import Telemetry

if TYPE_CHECKING:
    from chart_rendering import Helm

# -- flags -------------------------------------------------------------------------------------

OTHER_THAN_DEFAULT: Mapping[str, Any] = {
    "global": {"imageRegistry": "r.example.com"},
    "fullnameOverride": "other",
    "namespaces": ["team-a", "team-b"],
    "pullPolicy": "Always",
    "pullSecrets": ["one", "two"],
    "models": {
        "hubEndpoint": "https://hub.example.com",
        "proxy": {"http": "http://p:1", "https": "http://p:2", "noProxy": ".svc,10.0.0.0/8"},
        "caConfigMap": "ca",
        "priorityClassName": "high",
        "allowHostPath": True,
        "fsGroup": 0,
        "restrictEgress": True,
        "metricsNamespace": "monitoring",
        "clusterDomain": "example.internal",
        "memory": {
            "workerRuntime": "1Gi",
            "staging": "3Gi",
            "deviceRuntime": "2Gi",
            "gateway": "4Gi",
            "inspector": "5Gi",
        },
    },
}
NOT_IN_THE_CHART = {"resync_s"}


def _settings(helm: Helm, values: Mapping[str, Any]) -> Settings:
    (container,) = one(helm.objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    return flags.parse(container["args"], {})[0]


def test_the_charts_defaults_are_the_operators(helm: Helm) -> None:
    images = ("lamella-worker:0.1.0", "lamella-operator:0.1.0")
    assert _settings(helm, {}) == Settings(*images)


def test_each_setting_can_be_said_by_a_value(helm: Helm) -> None:
    said = _settings(helm, OTHER_THAN_DEFAULT)
    default = Settings("lamella-worker:0.1.0", "lamella-operator:0.1.0")
    same = {
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(said, field.name) == getattr(default, field.name)
    }
    assert same == NOT_IN_THE_CHART | {"namespace"}  # which is the release's
    assert said.namespaces == ("team-a", "team-b")
    assert dict(said.proxy)["NO_PROXY"] == ".svc,10.0.0.0/8"


def test_each_release_has_a_lease_and_a_root_secret_of_its_own(helm: Helm) -> None:
    objects = helm.objects({"fullnameOverride": "second"})
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    settings, process = flags.parse(container["args"], {})
    rules = one(objects, "Role")["rules"]
    named = [name for rule in rules for name in rule.get("resourceNames", ())]
    assert named == [process.lease, settings.root_secret] == ["second", "second-root"]


def test_the_ports_are_the_contracts(helm: Helm) -> None:
    objects = helm.objects({"test": {"model": "m"}})
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = one(objects, "Service")["spec"]["ports"]
    assert container["ports"] == [{"name": "metrics", "containerPort": names.PORT_OPERATOR}]
    assert port["port"] == names.PORT_OPERATOR
    assert container["readinessProbe"]["httpGet"]["path"] == names.PATH_READY
    assert container["livenessProbe"]["httpGet"]["path"] == names.PATH_HEALTH
    (asking,) = one(objects, "Pod")["spec"]["containers"]
    said = {each["name"]: each.get("value", "") for each in asking["env"]}
    assert said["OPERATOR"].endswith(f":{names.PORT_OPERATOR}")
    assert said["MODEL"].endswith(f":{names.PORT_HTTP}")


# -- permissions -------------------------------------------------------------------------------

Right = tuple[str, str, str]
"""Verb, resource (``apps/deployments``), scope (models, own or cluster)."""

FOR_OWNER_REFERENCES = ("update", "lamella.dev/shardedmodels/finalizers", "models")
"""The API server asks for it where it checks blockOwnerDeletion, as OpenShift's does."""


def _rights(role: Object, scope: str) -> Iterator[Right]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                of = f"{group}/{resource}" if group else resource
                wide = "cluster" if resource == "nodes" else scope
                yield from ((verb, of, wide) for verb in rule["verbs"])


def _asked(*scopes: str) -> set[Right]:
    return {(verb, resource, scope) for verb, resource, scope in PERMISSIONS if scope in scopes}


def test_cluster_wide_it_may_do_what_it_does_and_no_more(helm: Helm) -> None:
    objects = helm.objects()
    granted = {
        *_rights(one(objects, "ClusterRole", "lamella-system:lamella"), "models"),
        *_rights(one(objects, "Role"), "own"),
    }
    assert granted == _asked("models", "own", "cluster") | {FOR_OWNER_REFERENCES}


def test_with_namespaces_it_has_roles_only(helm: Helm) -> None:
    objects = helm.objects({"namespaces": ["team-a", "team-b"]})
    assert not [each for each in objects if each["kind"].startswith("ClusterRole")]
    own = one(objects, "Role", "lamella")
    assert set(_rights(own, "own")) == _asked("own")
    for namespace in ("team-a", "team-b"):
        there = [each for each in objects if each["metadata"].get("namespace") == namespace]
        assert set(_rights(one(there, "Role"), "models")) == _asked("models") | {
            FOR_OWNER_REFERENCES
        }
        binding = one(there, "RoleBinding")
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "lamella", "namespace": "lamella-system"}
        ]
        assert binding["roleRef"]["kind"] == "Role"


def test_nodes_are_read_only_where_that_is_allowed(helm: Helm) -> None:
    role = one(
        helm.objects({"rbac": {"readNodes": False}}), "ClusterRole", "lamella-system:lamella"
    )
    assert not [right for right in _rights(role, "models") if right[1] == "nodes"]


@pytest.mark.parametrize("values", [{}, {"namespaces": ["a"]}], ids=["cluster-wide", "namespaced"])
def test_secrets_are_never_listed(values: Mapping[str, Any], helm: Helm) -> None:
    for role in helm.objects(values):
        for rule in role.get("rules", ()):
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            if "secrets" in rule["resources"]:
                assert not {"list", "watch"} & set(rule["verbs"])


# -- metrics -----------------------------------------------------------------------------------


def _known_metrics() -> set[str]:
    """Every series that stages, gateways and the operator show."""
    told = [*Metrics().registry.collect(), *OperatorMetrics().registry.collect()]
    told += TelemetryCollector(Telemetry(stage=0, stages=1, pid=1, layers=(0, 1))).collect()
    endings = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "gauge": ("",),
    }
    return {f"{each.name}{end}" for each in told for end in endings[each.type]}


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    text = (CHART / "files" / "dashboard.json").read_text()
    asked = set(re.findall(r"\blamella_(?!dev_)\w+", text))
    assert len(asked) > 8
    assert asked <= _known_metrics()
    ids = [panel["id"] for panel in json.loads(text)["panels"]]
    assert len(ids) == len(set(ids))


# -- helm test ---------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    """An operator and a model in one: enough of both for `ask.py`."""

    ready = True

    def do_GET(self) -> None:
        if self.path == names.PATH_READY:
            self._say(200 if self.ready else 503, b"ready\n")
        else:
            self._say(200, b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == "Bearer s3cret"
        assert asked["model"] == "tiny"
        self._say(200 if known else 401, b'{"choices": [{"text": " blue."}]}')

    def _say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


ASKED = {
    "the operator alone": ({}, True, 0, "operator: ready"),
    "a model too": ({"MODEL": "", "API_KEY": "s3cret\nother"}, True, 0, "tiny: The sea is blue."),
    "a wrong key": ({"MODEL": "", "API_KEY": "x"}, True, 1, "HTTP Error 401"),
    "an operator that is not ready": ({}, False, 1, "HTTP Error 503"),
}


@pytest.mark.parametrize(("env", "ready", "code", "want"), ASKED.values(), ids=ASKED)
def test_helm_test_asks_for_a_completion(
    env: Mapping[str, str], ready: bool, code: int, want: str
) -> None:
    class Answers(_Answers):
        pass

    Answers.ready = ready
    with ThreadingHTTPServer((names.LOOPBACK, 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{names.LOOPBACK}:{server.server_address[1]}"
        said = {key: value or url for key, value in env.items()}
        done = subprocess.run(
            [sys.executable, "-c", (CHART / "files" / "ask.py").read_text()],
            env={"PATH": os.environ["PATH"], "OPERATOR": url, **said},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert want in done.stdout + done.stderr
