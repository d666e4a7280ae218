"""Whose place it is when stage 0 was started anew and remembers nobody."""

from __future__ import annotations

import pytest

from lamella_worker.membership.head_control import new_incarnation
from lamella_worker.membership.ring import Pause, Refuse, Ring

STAGES = 3
NOTHING = ("0" * 32, 0)
BEFORE, LONG_BEFORE, OURS = "b" * 32, "a" * 32, "c" * 32


@pytest.mark.parametrize(
    ("present", "claimant", "refused"),
    [
        pytest.param((BEFORE, 7), NOTHING, False, id="a-replacement-always-has-the-place"),
        pytest.param(NOTHING, NOTHING, False, id="a-replacement-of-one-that-saw-nothing"),
        pytest.param(NOTHING, (BEFORE, 7), True, id="one-of-before-comes-after-its-replacement"),
        pytest.param((BEFORE, 7), (BEFORE, 5), True, id="two-of-before-the-older-comes-last"),
        pytest.param((BEFORE, 5), (BEFORE, 7), False, id="two-of-before-the-newer-comes-last"),
        pytest.param((BEFORE, 5), (BEFORE, 5), True, id="nobody-knows-the-present-one-stays"),
        pytest.param(
            (BEFORE, 5), (LONG_BEFORE, 9), True, id="of-two-stage-0s-the-older-comes-last"
        ),
        pytest.param(
            (LONG_BEFORE, 9), (BEFORE, 5), False, id="of-two-stage-0s-the-newer-comes-last"
        ),
    ],
)
def test_after_stage_0_was_started_anew_the_older_of_two_pods_is_refused(
    present: tuple[str, int], claimant: tuple[str, int], refused: bool
) -> None:
    ring = Ring(STAGES, suspect_after_s=1.0, incarnation=OURS)
    ring.join(1, "a.1", "addr-a", 0.1, seen=present)
    ring.join(1, "a.1", "addr-a", 0.2, seen=(OURS, 3))  # what it sees here does not make it older
    told = ring.join(1, "b.1", "addr-b", 0.3, seen=claimant)
    assert told == (
        [Refuse(1, "b.1", "stage 1 has a newer process")]
        if refused
        else [Pause("stage 1 was replaced and is loading")]
    )
    assert ring.members[1].process == ("a.1" if refused else "b.1")


def test_incarnations_are_in_the_order_of_their_beginning() -> None:
    earlier, later = (
        new_incarnation(clock_ns=lambda: 10**18),
        new_incarnation(clock_ns=lambda: 10**18 + 10**6),
    )
    assert len(earlier) == len(later) == 16
    assert earlier.hex() < later.hex() < new_incarnation().hex()
    assert new_incarnation(clock_ns=lambda: 0) != new_incarnation(clock_ns=lambda: 0)


def test_whoever_comes_first_after_stage_0_was_started_anew_has_the_place() -> None:
    ring = Ring(STAGES, suspect_after_s=1.0, incarnation=OURS)
    assert ring.join(1, "a.1", "addr-a", 0.1, seen=(BEFORE, 7)) == []
    assert ring.members[1].process == "a.1"
