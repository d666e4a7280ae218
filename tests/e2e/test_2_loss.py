"""Everything that can be lost under load: pods, containers, processes, nodes, names.

Each test asks the same of the endpoint: no request fails and no text differs from an undisturbed
one; and of the operator: what was not lost keeps its UID.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from e2e_faults import CONTINUE, KILL, STOP, cordoned, finalizer, signal_child
from e2e_kube import wait_for
from e2e_report import Row
from e2e_traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def whole_again(model: Any, load: Any, moment: float, patience_s: float = 180) -> float:
    """Seconds from ``moment`` until the model is Ready and all streams flow."""
    load.flow(patience_s)
    wait_for("Ready after the fault", model.is_ready, 60)
    return round(time.monotonic() - moment, 1)


def close(load: Any, table: Any, moment: float, fault: str, seen: str, recovered: float) -> None:
    """Ends the traffic, holds it to its promise and writes the row."""
    load.stop()
    told = load.since(moment)
    table.add(
        Row(fault, seen, f"{len(told.errors)} of {told.answers}", told.longest_pause_s, recovered)
    )
    told.assert_unharmed()


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_s_pod_is_deleted(main: Any, load: Any, table: Any, stage: int) -> None:
    old, other = main.stage(stage), main.stage(1 - stage)
    moment = time.monotonic()
    main.kube.delete("pods", old["metadata"]["name"], main.namespace)
    replaced = main.until_replaced(old)
    recovered = whole_again(main, load, moment)
    assert main.stage(1 - stage)["metadata"]["uid"] == other["metadata"]["uid"]
    assert (
        main.stage(stage)["metadata"]["annotations"]["lamella.dev/predecessor"]
        == (old["metadata"]["uid"])
    )
    assert main.stage(stage)["metadata"]["annotations"]["lamella.dev/restarts"] == "0"
    seen = f"replacement made after {replaced:.1f} s, the other stage untouched"
    close(load, table, moment, f"stage {stage}'s pod deleted", seen, recovered)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_s_process_is_killed(main: Any, load: Any, table: Any, stage: int) -> None:
    uids, moment = main.uids(), time.monotonic()
    signal_child(main.kube, main.stage(stage), KILL)
    recovered = whole_again(main, load, moment)
    assert main.uids() == uids
    seen = "forked again in the same pod, no pod replaced"
    close(load, table, moment, f"stage {stage}'s process killed", seen, recovered)


def test_a_stage_s_process_stops_for_a_moment(main: Any, load: Any, table: Any) -> None:
    uids, pod, moment = main.uids(), main.stage(1), time.monotonic()
    signal_child(main.kube, pod, STOP)
    time.sleep(3)  # the fault itself lasts so long
    signal_child(main.kube, pod, CONTINUE)
    recovered = whole_again(main, load, moment)
    assert main.uids() == uids
    close(
        load,
        table,
        moment,
        "stage 1 stopped for 3 s (SIGSTOP, SIGCONT)",
        "resynchronised, no restart",
        recovered,
    )


def test_a_stage_s_process_is_wedged(main: Any, load: Any, table: Any) -> None:
    uids, moment = main.uids(), time.monotonic()
    signal_child(main.kube, main.stage(1), STOP)
    recovered = whole_again(main, load, moment)
    kept = "its parent killed and forked it" if main.uids() == uids else "its pod was replaced"
    close(load, table, moment, "stage 1 wedged (SIGSTOP)", kept, recovered)


def test_a_gateway_is_deleted(main: Any, load: Any, table: Any) -> None:
    pod, moment = main.pods("gateway")[0], time.monotonic()
    main.kube.delete("pods", pod["metadata"]["name"], main.namespace)
    wait_for("two gateways again", lambda: len(ready(main.pods("gateway"))) == 2, 120)
    recovered = whole_again(main, load, moment)
    close(load, table, moment, "a gateway's pod deleted", "its streams were finished first",
          recovered)  # fmt: skip


def test_three_container_kills_in_ten_minutes(
    main: Any, load: Any, table: Any, machines: Any
) -> None:
    machines.need()
    first, moment = main.stage(1), time.monotonic()
    machines.signal_container(first, KILL)
    wait_for("the kubelet restarts the container", lambda: restarts(main, first) == 1, 60)
    once = whole_again(main, load, moment)
    assert main.stage(1)["metadata"]["uid"] == first["metadata"]["uid"]
    for kill in (2, 3):
        old, again = main.stage(1), time.monotonic()
        machines.signal_container(old, KILL)
        if kill == 2:
            main.until_replaced(old)
        whole_again(main, load, again)
    last = main.stage(1)
    assert last["metadata"]["uid"] != first["metadata"]["uid"]
    seen = f"1st: restarted in place ({once:.0f} s); 2nd: pod replaced; 3rd: restarted in place"
    close(load, table, moment, "a container killed three times in ten minutes", seen,
          round(time.monotonic() - moment, 1))  # fmt: skip


def test_a_pod_is_stuck_terminating(main: Any, load: Any, table: Any) -> None:
    old, moment = main.stage(1), time.monotonic()
    name = old["metadata"]["name"]
    with finalizer(main.kube, old):
        main.kube.delete("pods", name, main.namespace)
        main.until_replaced(old)
        recovered = whole_again(main, load, moment)
        stuck = main.kube.get("pods", name, main.namespace)
        assert stuck is not None, "it should have been stuck"
        close(load, table, moment, "a pod stuck Terminating",
              "its replacement serves beside it", recovered)  # fmt: skip
    wait_for("it goes at last", lambda: main.kube.get("pods", name, main.namespace) is None, 30)


@pytest.mark.slow
def test_a_node_is_drained(main: Any, load: Any, table: Any) -> None:
    node, moment = main.stage(0)["spec"]["nodeName"], time.monotonic()
    try:
        main.kube.run(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s",
            "--pod-selector=lamella.dev/model=main", timeout_s=260,
        )  # fmt: skip
        drained = time.monotonic() - moment
        recovered = whole_again(main, load, moment)
        where = {pod["spec"]["nodeName"] for pod in main.pods()}
        assert node not in where
        close(load, table, moment, "a node drained", f"empty after {drained:.0f} s, one stage at "
              "a time", recovered)  # fmt: skip
    finally:
        main.kube.run("uncordon", node)


@pytest.mark.slow
def test_dns_is_down_while_a_stage_is_replaced(
    main: Any, load: Any, table: Any, machines: Any
) -> None:
    machines.need()
    moment = time.monotonic()
    with machines.without("coredns", main.kube):
        load.flow()
        served = len(load.done)
        old = main.stage(1)
        main.kube.delete("pods", old["metadata"]["name"], main.namespace)
        main.until_replaced(old)
        wait_for("the replacement runs", lambda: ready_or_running(main.stage(1)), 60)
    recovered = whole_again(main, load, moment)
    close(load, table, moment, "DNS down while a stage is replaced",
          f"{served} answers without DNS; the ring closed when it was back", recovered)  # fmt: skip


@pytest.mark.slow
def test_a_node_loses_its_power(main: Any, table: Any, machines: Any, release: Any) -> None:
    machines.need()
    on = main.stage(1)["spec"]["nodeName"]
    a_gateway_elsewhere(main, on)
    survivors = [g for g in main.pods("gateway") if g["spec"]["nodeName"] != on]
    address = survivors[0]["status"]["podIP"]
    before = main.uids()
    lost = {p["metadata"]["uid"] for p in main.pods() if p["spec"]["nodeName"] == on}
    with Traffic(lambda: f"http://{address}:8000/v1", main.name) as load:
        load.flow()
        moment = time.monotonic()
        machines.do("node-off", on)
        try:
            wait_for("other pods in their places", lambda: not (main.uids() & lost), 90)
            replaced = time.monotonic() - moment
            recovered = whole_again(main, load, moment)
            assert main.uids() >= before - lost
            close(load, table, moment, "a node's power goes",
                  f"replacements made after {replaced:.0f} s; a gateway elsewhere lost nothing",
                  recovered)  # fmt: skip
        finally:
            machines.do("node-on", on)
    release.until_led()


@pytest.mark.slow
def test_too_many_failures_end_in_degraded_and_an_annotation_resumes(
    make: Any, table: Any, machines: Any
) -> None:
    machines.need()
    model = make("weak", recovery={"maxRestarts": 0}, gateway={"replicas": 1})
    model.until_ready()
    machines.signal_container(model.stage(1), KILL)
    wait_for("restarted", lambda: restarts(model, model.stage(1)) == 1, 60)
    model.until_ready()
    machines.signal_container(model.stage(1), KILL)
    said = model.until_reason("RetriesExhausted", "CrashLoop", "StageFailed", patience_s=60)
    wait_for("Degraded", lambda: model.condition("Degraded").get("status") == "True", 30)
    model.annotate("lamella.dev/resume=1")
    seconds = model.until_ready()
    table.add(Row("more failures than recovery.maxRestarts", f"Degraded: {said[:160]}; resumed by "
                  "the annotation", "", None, round(seconds, 1)))  # fmt: skip


def test_a_cordoned_node_gets_no_replacement(main: Any, load: Any) -> None:
    old = main.stage(1)
    with cordoned(main.kube, old["spec"]["nodeName"]):
        main.kube.delete("pods", old["metadata"]["name"], main.namespace)
        main.until_replaced(old)
        load.flow(180)
        assert main.stage(1)["spec"]["nodeName"] != old["spec"]["nodeName"]


def a_gateway_elsewhere(model: Any, node: str) -> None:
    """Not both gateways are on ``node``: a drain of the other one leaves them so."""

    def elsewhere() -> list[dict[str, Any]]:
        return [g for g in ready(model.pods("gateway")) if g["spec"]["nodeName"] != node]

    if not elsewhere():
        with cordoned(model.kube, node):
            moved = model.pods("gateway")[0]["metadata"]["name"]
            model.kube.delete("pods", moved, model.namespace)
            wait_for("a gateway is on another node", elsewhere, 90)


def restarts(model: Any, pod: dict[str, Any]) -> int:
    found = model.kube.get("pods", pod["metadata"]["name"], model.namespace)
    statuses = (found or {}).get("status", {}).get("containerStatuses", [])
    return sum(status["restartCount"] for status in statuses)


def ready(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def is_ready(pod: dict[str, Any]) -> bool:
        conditions = pod["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    return [pod for pod in pods if is_ready(pod)]


def ready_or_running(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") == "Running"
