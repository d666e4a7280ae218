"""The operator on a real API server that misbehaves, is away, or takes rights away.

And two operators, and one that is killed wherever that may hurt.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kube_fault_proxy import CUT, HANG, WRITES, FaultProxy, Trouble
from kube_operator_lab import Lab, all_rules, lab_in
from kube_processes import wait_for

from lamella_operator.reconciling.kinds import WATCHED

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane


@pytest.fixture
def lab(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Lab]:
    with lab_in(control_plane, namespace, tmp_path) as found:
        yield found


@pytest.fixture
def proxy(control_plane: ControlPlane, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(control_plane.kubeconfig, tmp_path) as found:
        yield found


# -- quiet ----------------------------------------------------------------------------------------


def test_when_nothing_changes_nothing_is_written_and_each_kind_is_listed_once_a_round(
    lab: Lab, proxy: FaultProxy
) -> None:
    operator = lab.started(kubeconfig=proxy.kubeconfig)
    lab.make()
    lab.wait_ready()
    wait_for(lambda: operator.metric("queue_delayed") == 0 or None, "nothing is waited for", 90)
    done = operator.metric("reconciles_total", result="ok")
    since = len(proxy.asked)

    def rounds() -> int:
        return sum("limit=500" in path and "/services?" in path for _, path in proxy.asked[since:])

    wait_for(lambda: rounds() >= 3 or None, "three rounds of resync")
    asked = proxy.asked[since:]
    assert proxy.writes(since) == []
    assert operator.metric("reconciles_total", result="ok") == done
    for kind in WATCHED:
        lists = [path for _, path in asked if f"/{kind.plural}?" in path and "watch" not in path]
        assert rounds() - 1 <= len(lists) <= rounds() + 1
    assert operator.metric("resync_found_total") == 0


# -- the API server -------------------------------------------------------------------------------


def test_a_pod_that_is_deleted_while_the_history_is_lost_is_replaced(lab: Lab) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    before = lab.uids()
    operator.program.send(signal.SIGSTOP)  # so that it hears of nothing in time
    lost = lab.lose_a_pod(at_once=True)
    lab.plane.forget_history()
    operator.program.send(signal.SIGCONT)

    def replaced() -> bool | None:
        if operator.program.pid is None:
            operator.start()  # its lease ran out meanwhile: a Deployment starts it again
        return lab.has_replaced(lost) or None

    wait_for(replaced, "it is replaced", 60)
    assert len(lab.uids().items() & before.items()) == 1
    lab.wait_ready()


def test_an_api_server_that_is_killed_and_comes_back_is_gone_on_with(lab: Lab) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    before = lab.uids()
    with lab.plane.api_server_gone():
        wait_for(lambda: "NoAnswer" in operator.log or "lease" in operator.log or None, "noticed")
        assert operator.probe("healthz") == 200
    lab.edit(replicas=2)

    def serves() -> bool | None:
        if operator.program.pid is None:
            operator.start()
        return lab.is_ready(ready="2/2") or None

    wait_for(serves, "2/2", 60)
    assert lab.uids().items() >= before.items()


def test_an_api_server_that_hangs_for_20_s_ends_a_leader_and_never_its_health(lab: Lab) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    before = lab.uids()
    with lab.plane.api_server_frozen():
        health = set()

        def ended() -> bool | None:
            health.add(operator.probe("healthz"))
            return operator.program.pid is None or None

        wait_for(ended, "the leader gave up", 40)
    assert health <= {200, 0}
    assert "was not renewed in time" in operator.log
    operator.start()
    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    assert lab.uids().items() >= before.items()


TROUBLES: dict[str, Trouble] = {"410": 410, "429": 429, "500": 500, "cut": CUT}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_an_api_server_in_trouble_delays_things_and_breaks_none(
    lab: Lab, proxy: FaultProxy, trouble: Trouble
) -> None:
    """Each third request but the lease's fails; a model is made, changed and deleted meanwhile."""
    count = [0]

    def every_third(method: str, path: str) -> Trouble:
        if "/leases" in path or (trouble == 410 and "watch=true" not in path):
            return None  # 410 is said to watches and to pages only
        count[0] += 1
        return trouble if count[0] % 3 == 0 else None

    operator = lab.started(kubeconfig=proxy.kubeconfig)
    proxy.trouble = every_third
    lab.make()
    lab.wait_ready()
    assert len(lab.pods()) == 2
    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    assert len(lab.pods()) == 4
    proxy.cut_streams()
    lost = lab.lose_a_pod()
    wait_for(lambda: lab.has_replaced(lost, 4) or None, "replaced", 60)
    assert operator.probe("healthz") == 200
    lab.delete()
    wait_for(lambda: not any(lab.everything().values()) or None, "nothing is left", 60)
    assert operator.program.pid is not None


def test_a_watch_that_delivers_nothing_is_found_by_a_resync_and_begun_anew(
    lab: Lab, proxy: FaultProxy
) -> None:
    proxy.trouble = lambda method, path: HANG if "watch=true" in path and "/pods" in path else None
    operator = lab.started(kubeconfig=proxy.kubeconfig)
    lab.make()
    lab.wait_ready()  # by resyncs and waits alone
    wait_for(lambda: operator.metric("watch_restarts_total") > 0 or None, "begun anew", 60)
    proxy.trouble = lambda method, path: None
    wait_for(lambda: operator.metric("watch_lag_seconds") == 0 or None, "nothing is owed", 90)
    assert operator.program.pid is not None


# -- rights ---------------------------------------------------------------------------------------


def test_the_rights_that_it_says_it_needs_are_enough(lab: Lab) -> None:
    kubeconfig = lab.plane.kubeconfig_with(all_rules(), namespace=lab.namespace)
    operator = lab.started(kubeconfig=kubeconfig)
    lab.make()
    lab.wait_ready()
    lost = lab.lose_a_pod()
    wait_for(lambda: lab.has_replaced(lost) or None, "replaced")
    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    lab.delete()
    wait_for(lambda: not any(lab.everything().values()) or None, "nothing is left", 60)
    assert "orbidden" not in operator.log


def test_a_namespace_that_may_no_longer_be_seen_does_not_stop_the_other(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    other = f"{namespace}-other"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}
    control_plane.api.request("POST", "/api/v1/namespaces", body)
    account = f"/api/v1/namespaces/{other}/serviceaccounts/default"
    wait_for(lambda: control_plane.api.exists(account) or None, account)
    with lab_in(control_plane, namespace, tmp_path, other) as lab:
        kubeconfig = control_plane.kubeconfig_with(all_rules(), namespace=namespace)
        bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings"
        roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"
        (role,) = lab.api.request("GET", roles.format(namespace))["items"]
        (binding,) = lab.api.request("GET", bindings.format(namespace))["items"]
        for found in (role, binding):
            found["metadata"] = {"name": found["metadata"]["name"]}
        lab.api.request("POST", roles.format(other), role)
        lab.api.request("POST", bindings.format(other), binding)
        operator = lab.started(kubeconfig=kubeconfig, models=(namespace, other))
        lab.make()
        lab.make(namespace=other)
        lab.wait_ready()
        lab.wait_ready(namespace=other)

        lab.api.request("DELETE", f"{bindings.format(other)}/{binding['metadata']['name']}")
        wait_for(
            lambda: operator.metric("resync_problem", namespace=other) or None, "it is told", 30
        )
        assert f"namespace={other}" in operator.log
        before = lab.uids(namespace=other)
        lab.edit(replicas=2)
        lab.wait_ready(ready="2/2")
        assert operator.metric("resync_problem", namespace=namespace) == 0
        assert operator.probe("healthz") == 200
        assert lab.uids(namespace=other) == before

        lab.api.request("POST", bindings.format(other), binding)
        lost = lab.lose_a_pod(other)
        wait_for(lambda: lab.has_replaced(lost, namespace=other) or None, "looked after again", 90)


# -- several operators ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "within_s"), [(signal.SIGTERM, 8), (signal.SIGKILL, 25)], ids=["ended", "killed"]
)
def test_of_two_operators_one_acts_and_the_other_takes_over(
    lab: Lab, number: signal.Signals, within_s: float
) -> None:
    one, two = lab.started(), lab.started()
    wait_for(lambda: one.leads or two.leads or None, "one leads")
    lab.make()
    lab.wait_ready()
    leader, other = (one, two) if one.leads else (two, one)
    assert not other.leads
    assert other.metric("reconciles_total") == 0
    assert other.metric("writes_total") == 0
    before = lab.uids()
    leader.stop(number)
    lab.edit(replicas=2)
    wait_for(lambda: other.leads or None, "the other leads", within_s)
    lab.wait_ready(ready="2/2")
    assert lab.uids().items() >= before.items()


def test_a_leader_that_was_stopped_for_30_s_writes_nothing_and_ends(
    lab: Lab, proxy: FaultProxy
) -> None:
    one = lab.started(kubeconfig=proxy.kubeconfig)
    wait_for(lambda: one.leads or None, "one leads")
    two = lab.started()
    lab.make()
    lab.wait_ready()
    one.program.send(signal.SIGSTOP)
    wait_for(lambda: two.leads or None, "two leads", 40)
    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    before, writes = lab.uids(), len(proxy.writes())
    one.program.send(signal.SIGCONT)
    wait_for(lambda: one.program.pid is None or None, "one ends")
    assert len(proxy.writes()) <= writes + 1  # at most the one that was under way
    assert lab.uids() == before
    assert two.leads


@pytest.mark.parametrize("nth", [1, 2, 4, 5, 7, 9, 12])
def test_an_operator_that_is_killed_at_any_write_is_gone_on_with(
    lab: Lab, proxy: FaultProxy, nth: int
) -> None:
    """Killed when its nth write has reached the server; the next one makes nothing twice."""
    operator = lab.operator(kubeconfig=proxy.kubeconfig)
    count = [0]

    def kill(method: str, path: str) -> Trouble:
        if method in WRITES and "/leases" not in path:
            count[0] += 1
            if count[0] == nth:
                operator.program.send(signal.SIGKILL)
        return None

    proxy.trouble = kill
    lab.make()
    operator.program.start()
    wait_for(lambda: operator.program.pid is None or None, f"killed at write {nth}")
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{lab.namespace}/leases/lamella-operator"
    lab.api.request("DELETE", lease)
    lab.started()
    lab.wait_ready()
    there = lab.everything()
    assert len(lab.uids()) == len(lab.pods()) == 2
    assert len(there["controllerrevisions"]) == 1
    assert len(there["secrets"]) == 3
    assert len(there["services"]) == 3
    assert len(there["deployments"]) == 1
