"""How pods of a gang are marked: what is the same in every replica, and what a pod adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lamella_contract.errors import InvalidSpec
from lamella_contract.spec_cluster import SchedulingSpec
from lamella_operator.deciding.words import unschedulable
from lamella_operator.desired import gangs, pods

COUNT, ROLE = "kueue.x-k8s.io/pod-group-total-count", "kueue.x-k8s.io/role-hash"


def body(stages: int, gang: str = "Kueue", **pipeline: Any) -> dict[str, Any]:
    return {
        "model": {"uri": "hf://a/b"},
        "pipeline": {"stages": stages, **pipeline},
        "scheduling": {"gang": gang} | ({} if gang == "None" else {"queueName": "team"}),
    }


def unlike(count: int) -> list[dict[str, Any]]:
    return [{"resources": {"limits": {"cpu": at + 1, "memory": "8Gi"}}} for at in range(count)]


@pytest.mark.parametrize("kinds", [1, 8])
def test_stages_that_ask_for_the_same_are_one_role(make: Callable[..., Any], kinds: int) -> None:
    specs = (unlike(kinds) * 8)[:8]
    templates = make(body(8, stageSpecs=specs)).revision.pods
    notes = [one["metadata"]["annotations"] for one in templates]
    assert len({one[ROLE] for one in notes}) == kinds
    assert {one[COUNT] for one in notes} == {"8"}


def test_kueue_counts_no_more_than_eight_roles(make: Callable[..., Any]) -> None:
    templates = list(make(body(8, "None", stageSpecs=unlike(8))).revision.pods)
    other = make(body(1, "None", stageSpecs=unlike(9)[8:])).revision.pods
    with pytest.raises(InvalidSpec, match="at most 8 kinds of stages \\(9 differ"):
        gangs.marked([*templates, *other], SchedulingSpec(gang="Kueue", queue_name="team"))
    assert len(gangs.marked([*templates, *other], SchedulingSpec(gang="Volcano"))) == 9


def test_a_group_is_of_one_revision_of_one_replica(make: Callable[..., Any]) -> None:
    made = make(body(2, "Volcano"))

    def name(replica: int, revision: str) -> str:
        pod = pods.stage_pod(
            made.revision.pods[0],
            made.model,
            replica=replica,
            stage=0,
            revision=revision,
            predecessor="",
            restarts=0,
        )
        return str(pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"])

    assert len({name(0, "a"), name(1, "a"), name(0, "b")}) == 3
    group = gangs.group(made.model, 1, made.revision)
    assert group is not None
    assert group["metadata"]["name"] == name(1, made.revision.hash)


@pytest.mark.parametrize(
    "message",
    [
        "Scheduling is blocked due to non-empty scheduling gates",
        "pod group is not ready, 2 Pending, 4 minAvailable",
        "rejected due to timeout: cannot find enough sibling pods",
    ],
)
def test_what_a_gang_waits_for_is_told(message: str) -> None:
    assert unschedulable(message, {}, 0, 4).reason == "Queued"
