"""What Kueue holds: let go before a replacement is made, or Kueue takes that for one too many."""

from __future__ import annotations

import pytest
from operator_world import SETTINGS, World, make_body

from lamella_operator.actions import Create, Delete, Release
from lamella_operator.deciding.decide import decide

KUEUE = {"scheduling": {"gang": "Kueue", "queueName": "team"}}


@pytest.mark.parametrize(
    ("body", "order"),
    [({}, [Create, Delete]), (KUEUE, [Delete, Release, Create])],
    ids=["alone", "held by Kueue"],
)
def test_a_wedged_stage_and_its_replacement(body: dict[str, object], order: list[type]) -> None:
    world = World(seed=1)
    model = world.apply("m", make_body(**body))
    world.settle()
    world.now_s += 700
    world.pod("m", 0, 1).wedged = True
    world.names_pods = True
    actions = decide(world.observe(model), SETTINGS).actions
    assert [type(one) for one in actions if isinstance(one, Create | Delete | Release)] == order
