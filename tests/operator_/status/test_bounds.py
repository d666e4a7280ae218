"""Whatever is found, the status is valid, small, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella_operator import reasons
from lamella_operator.actions import (
    REPLICA_STATES,
    STAGE_STATES,
    Note,
    ReplicaSituation,
    StageSituation,
)
from lamella_operator.status import evidence
from lamella_operator.status.document import should_write
from lamella_operator.status.events import events

TEXT = st.one_of(st.text(max_size=40), st.text(max_size=9).map(lambda text: text * 900))
NOTE = st.builds(Note, st.sampled_from(sorted(reasons.ALL)), TEXT)
MAYBE = st.none() | NOTE
BYTES = st.integers(0, 1 << 45)
STAGE = st.builds(
    StageSituation,
    stage=st.integers(0, 1023),
    state=st.sampled_from(STAGE_STATES),
    pod=st.sampled_from(["", "p" * 63]),
    pod_uid=st.sampled_from(["", "u" * 36]),
    node=st.sampled_from(["", "n" * 253]),
    restarts=st.integers(0, 1000),
    bytes_done=BYTES,
    bytes_total=BYTES,
    bytes_per_s=st.floats(0, 1e12),
    note=MAYBE,
)
REPLICA = st.builds(
    ReplicaSituation,
    replica=st.integers(0, 99999),
    revision=st.just("0123456789"),
    updated=st.booleans(),
    state=st.sampled_from(REPLICA_STATES),
    stages=st.lists(STAGE, max_size=5).map(tuple),
    note=MAYBE,
)
CHANGES = st.fixed_dictionaries(
    {
        "refused": MAYBE,
        "unresolved": MAYBE,
        "unplanned": MAYBE,
        "degraded": MAYBE,
        "rolling": MAYBE,
        "gateway_note": MAYBE,
        "paused": st.booleans(),
        "wanted_replicas": st.integers(0, 1000),
        "gateways_ready": st.integers(0, 3),
        "capacity_known": st.booleans(),
        "recovery_needs_hub": st.booleans(),
        "resumed": st.sampled_from(["", "again"]),
        "yielded_s": st.lists(st.tuples(st.integers(0, 9), st.floats(0, 2e9)), max_size=3).map(
            tuple
        ),
        "failures": st.lists(NOTE, max_size=7).map(tuple),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(replicas=st.lists(REPLICA, max_size=4), changes=CHANGES, again=CHANGES)
def test_any_situation_gives_a_valid_status(
    lab: Any,
    faults: Callable[[Any], list[str]],
    replicas: list[ReplicaSituation],
    changes: dict[str, Any],
    again: dict[str, Any],
) -> None:
    first = lab.document(lab.situation(*replicas, **changes))
    second = lab.document(lab.situation(**again), first, after_s=60)
    for found in (first, second):
        assert faults(found) == []
        assert len(json.dumps(found).encode()) <= 64 * 1024 * 2  # escaped; the server stores UTF-8
        assert len(json.dumps(found, ensure_ascii=False).encode()) <= 64 * 1024
        assert found["reason"] in reasons.ALL
    assert not should_write(first, json.loads(json.dumps(first)), 0.0, 1e9)
    told = events(first, second)
    assert len(told) <= 3 + 5
    assert all(event.reason in reasons.ALL for event in told)


@pytest.mark.parametrize(("replicas", "stages"), [(1, 1024), (64, 4), (1000, 4)])
def test_a_large_model_lists_what_is_not_ready_and_counts_the_rest(
    lab: Any, faults: Callable[[Any], list[str]], replicas: int, stages: int
) -> None:
    long = Note("StageFailed", "x" * 3000)
    found = lab.document(
        lab.situation(
            *(
                ReplicaSituation(
                    replica,
                    "0123456789",
                    True,
                    "Starting",
                    tuple(
                        StageSituation(stage, "Loading" if stage == 3 else "Ready", note=long)
                        for stage in range(stages)
                    ),
                    long,
                )
                for replica in range(replicas)
            ),
            wanted_replicas=replicas,
            failures=(long,) * 5,
        )
    )
    assert faults(found) == []
    assert len(json.dumps(found).encode()) <= 64 * 1024
    listed = [stage for one in found["pipelines"] for stage in one.get("stages", [])]
    assert len(listed) == 64
    assert found["omittedStages"] == replicas * stages - 64
    assert sum(stage["state"] == "Loading" for stage in listed) == min(replicas, 64)


SECRETS = {
    "a hub's token": ("401 for hf_abcdefghijklmnopQRST", "hf_abcdefghijklmnopQRST"),
    "a bearer": ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
    "an address": ("cannot reach http://user:pa55@proxy:3128/x", "pa55"),
    "a signed address": ("GET https://cdn/x?Signature=aa%20bb&Key-Pair-Id=K1 failed", "aa%20bb"),
    "a variable": ("env HF_TOKEN=abcdefgh", "abcdefgh"),
    "JSON": ('{"secret": "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"}', "NY6T1ed"),
    "YAML": ("api_key: 0a1b2c3d4e5f", "0a1b2c3d4e5f"),
    "a password": ("password: hunter", "hunter"),
    "a cloud's key": ("AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
    "a web token": ("eyJhbGciOiJI.eyJzdWIiOiIx.abc_def", "eyJzdWIiOiIx"),
    "a private key": ("-----BEGIN EC PRIVATE KEY-----\nMIIE\n-----END EC PRIVATE KEY-----", "MIIE"),
}  # fmt: skip
HARMLESS = [
    "context: got 32,768 tokens, the model takes at most 8,192",
    "max_tokens: 131072 and kv_tokens=131072",
    'couldn\'t find key token in Secret ai/hub; secret "hub" not found',
    "http://qwen3.ai.svc.cluster.local:8000/v1",
    "image registry.test/worker@sha256:0123456789abcdef cannot be pulled",
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    "pods qwen3-0-1-7431a8a2 is forbidden: exceeded quota: small, requested: pods=1",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    for found in (evidence.line(text, 1000), evidence.block(text, 1000)):
        assert secret not in found
        assert evidence.HIDDEN in found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert evidence.line(text, 1000) == text


@settings(deadline=None)
@given(TEXT, st.integers(8, 100))
def test_words_are_cut_by_bytes(text: str, most: int) -> None:
    assert len(evidence.line(text, most).encode()) <= most
    assert len(evidence.block(text, most).encode()) <= most


def test_the_end_of_a_log_is_kept() -> None:
    assert evidence.block("a\n" * 5000 + "ValueError: the cause", 100).endswith("the cause")
