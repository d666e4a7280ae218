"""Budgets, policies, and what a live object may have beyond what is wanted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from lamella_operator.desired import children
from lamella_operator.desired.covers import covers

BODY = {"model": {"uri": "hf://Qwen/Qwen3"}, "pipeline": {"stages": 4}}


def test_a_pipelines_budget_is_an_integer_below_its_stages(make: Callable[..., Any]) -> None:
    found = children.budgets(make(BODY).model, {3: (4, False), 0: (4, True)})
    shown = [
        (each["metadata"]["name"], each["spec"].get("minAvailable"),
         each["spec"]["unhealthyPodEvictionPolicy"])
        for each in found
    ]  # fmt: skip
    assert shown == [
        ("qwen3-gateway", None, "AlwaysAllow"),
        ("qwen3-0", 3, "IfHealthyBudget"),
        ("qwen3-3", 3, "AlwaysAllow"),
    ]


def test_egress_is_left_alone_unless_asked_for(make: Callable[..., Any]) -> None:
    made = make(BODY)
    policy = children.network_policy(made.model, made.settings)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert "egress" not in policy["spec"]


def test_restricted_egress_lets_a_mirror_and_a_proxy_be_reached(make: Callable[..., Any]) -> None:
    made = make(BODY)
    settings = dataclasses.replace(
        made.settings,
        restrict_egress=True,
        hub_endpoint="http://mirror",
        proxy=(("HTTPS_PROXY", "proxy:3128"), ("NO_PROXY", "a.b:9")),
    )
    egress = children.network_policy(made.model, settings)["spec"]["egress"]
    assert [port["port"] for port in egress[-1]["ports"]] == [80, 443, 3128]


def test_a_gateway_that_is_deleted_while_it_starts_ends(make: Callable[..., Any]) -> None:
    pod = make(BODY).revision.gateway["spec"]["template"]["spec"]
    assert pod["shareProcessNamespace"], "it is not process 1, so that SIGTERM ends it at any time"


def test_gateways_are_the_revisions_but_as_many_as_wanted_now(make: Callable[..., Any]) -> None:
    old = make(BODY).revision
    now = make({**BODY, "gateway": {"replicas": 5}, "drainSeconds": 1}).model
    found = children.gateway(now, old)
    assert found["spec"]["replicas"] == 5
    assert found["spec"]["template"] == old.gateway["spec"]["template"]
    assert "replicas" not in old.gateway["spec"]


def test_the_url_is_the_services(make: Callable[..., Any]) -> None:
    made = make(BODY)
    want = "http://qwen3.ai.svc.cluster.local:8000/v1"
    assert children.url(made.model, made.settings) == want


WANT: dict[str, Any] = {
    "metadata": {"labels": {"a": "b"}, "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {
        "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}],
        "selector": {"x": "y"},
        "empty": {},
        "none": "",
        "template": {
            "containers": [
                {
                    "name": "c",
                    "env": [{"name": "A", "value": "1"}],
                    "resources": {"limits": {"cpu": "0.5", "memory": "2048Mi"}},
                }
            ],
            "tolerations": [{"key": "k"}],
        },
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 1, "protocol": "TCP"}]}],
    },
}


def _edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(live: dict[str, Any]) -> None:
        *before, last = path.split(".")
        at: Any = live
        for key in before:
            at = at[int(key)] if key.isdigit() else at[key]
        if isinstance(at, list):
            at.insert(int(last), value) if int(last) == len(at) else at.__setitem__(
                int(last), value
            )
        elif value is None:
            del at[last]
        else:
            at[last] = value

    return edit


C = "spec.template.containers.0"
COVER_ROWS: dict[str, tuple[Callable[[dict[str, Any]], None], bool]] = {
    "nothing": (lambda live: None, True),
    "another's label": (_edit("metadata.labels.z", "1"), True),
    "another owner": (_edit("metadata.ownerReferences.1", {"uid": "v"}), True),
    "a default": (_edit("spec.type", "ClusterIP"), True),
    "a default in a port": (_edit("spec.ports.0.nodePort", 30000), True),
    "an empty field dropped": (_edit("spec.none", None), True),
    "an empty object kept apart": (_edit("spec.empty", None), True),
    "another's variable": (_edit(f"{C}.env.1", {"name": "B", "value": "2"}), True),
    "half a CPU": (_edit(f"{C}.resources.limits.cpu", "500m"), True),
    "the same bytes": (_edit(f"{C}.resources.limits.memory", "2Gi"), True),
    "a default in a toleration": (
        _edit("spec.template.tolerations.0", {"key": "k", "operator": "Equal"}),
        True,
    ),
    "label changed": (_edit("metadata.labels.a", "c"), False),
    "label gone": (_edit("metadata.labels.a", None), False),
    "owner gone": (_edit("metadata.ownerReferences", []), False),
    "port changed": (_edit("spec.ports.0.port", 80), False),
    "selector changed": (_edit("spec.selector.x", "z"), False),
    "variable changed": (_edit(f"{C}.env.0.value", "2"), False),
    "memory changed": (_edit(f"{C}.resources.limits.memory", "1Gi"), False),
    "memory gone": (_edit(f"{C}.resources.limits.memory", None), False),
    "a toleration more": (_edit("spec.template.tolerations.1", {"key": "m"}), False),
    "a hole in a policy": (_edit("spec.ingress.1", {}), False),
    "a peer more": (_edit("spec.ingress.0.from.1", {"podSelector": {"a": "b"}}), False),
    "a rule for everybody": (_edit("spec.ingress.0.from", None), False),
    "a number for a string": (_edit("spec.selector.x", 1), False),
    "all gone": (_edit("spec", None), False),
}


@pytest.mark.parametrize(("edit", "want"), COVER_ROWS.values(), ids=COVER_ROWS)
def test_live_objects_may_have_more_but_nothing_else(
    edit: Callable[[dict[str, Any]], None], want: bool
) -> None:
    live = copy.deepcopy(WANT)
    edit(live)
    assert covers(WANT, live) is want


def test_every_object_covers_itself(
    case: tuple[str, Any], objects: Callable[[Any], list[Any]]
) -> None:
    for each in objects(case[1]):
        assert covers(each, copy.deepcopy(each))
