"""Names: valid, unique, the same each time."""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_operator.desired import expand, object_names

MODEL = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def _all(model: str, uid: str) -> list[tuple[str, str]]:
    """Kind and name of all that a model of 2 replicas and 2 stages has."""
    n = object_names
    found = [
        ("Service", n.service_name(model)),
        ("Service", n.heads_name(model)),
        *(("Service", n.ring_name(model, replica)) for replica in range(2)),
        ("Deployment", n.gateway_name(model)),
        ("Budget", n.gateway_budget_name(model)),
        *(("Budget", n.budget_name(model, replica)) for replica in range(2)),
        ("Policy", n.policy_name(model)),
        ("Revision", n.revision_name(model, uid, "0123456789")),
        ("Pod", n.inspector_name(model, "key", 1)),
        ("Pod", n.inspector_name(model, "key", 2)),
    ]
    for replica, stage in itertools.product(range(2), range(2)):
        for before in (n.first_of(uid, "r"), "some-uid"):
            found.append(("Pod", n.stage_pod_name(model, replica, stage, before)))
    for role, generation in itertools.product(("stage-0", "stage-1", "gateway-0"), (1, 2)):
        found.append(("Secret", n.secret_name(model, role, uid, generation)))
    return found


@settings(deadline=None)
@given(MODEL)
def test_names_are_valid_and_each_is_one_objects(model: str) -> None:
    found = _all(model, "uid")
    assert len(set(found)) == len(found)
    for _, name in found:
        assert len(name) <= 63
        assert LABEL.fullmatch(name)
    assert found == _all(model, "uid")


def test_long_names_that_begin_alike_stay_apart() -> None:
    first, second = "m" * 60 + "-a", "m" * 60 + "-b"
    assert not set(_all(first, "u")) & set(_all(second, "v"))


def test_a_successor_of_the_same_name_shares_no_key_revision_or_first_pod() -> None:
    n = object_names
    uid, other = "u", "v"
    assert n.secret_name("m", "stage-0", uid) != n.secret_name("m", "stage-0", other)
    assert n.revision_name("m", uid, "r") != n.revision_name("m", other, "r")
    first, second = n.first_of(uid, "r"), n.first_of(other, "r")
    assert n.stage_pod_name("m", 0, 0, first) != n.stage_pod_name("m", 0, 0, second)


@settings(deadline=None)
@given(MODEL, st.integers(0, 99999))
def test_the_rings_name_can_be_written_before_the_replica_is_known(
    model: str, replica: int
) -> None:
    written = object_names.ring_name(model, expand.REPLICA)
    assert written.replace(expand.REPLICA, str(replica)) == object_names.ring_name(model, replica)
