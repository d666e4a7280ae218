"""Which requests of a step that failed are computed anew.

Knows no queues and no clock. In the flow: `scheduler` asks here when a step comes back with an
error.
"""

from __future__ import annotations

from typing import Protocol

from lamella_contract.errors import OutOfMemory
from lamella_worker.scheduling.flights import Flight
from lamella_worker.scheduling.limits import StepBudget
from lamella_worker.scheduling.requests import LiveRequest

TRIES = 3
"""How often in a row, with no token between, a request is tried again after a failed step."""


class Tries(Protocol):
    """Who can compute a request anew: `Composer`."""

    budget: StepBudget

    def begin_again(self, request: LiveRequest) -> None: ...


def try_again(flight: Flight, error: str, tries: Tries) -> list[LiveRequest]:
    """Have a failed step's requests computed anew where that may help; those that must end.

    It may help when memory ran out, and when the step also held rows of a tenure that is over: they
    followed a step of it that had failed, and state that goes on from there cannot be computed.
    """
    tenants = [request for request, _ in flight.tenants()]
    exhausted = error.startswith(f"{OutOfMemory.kind}: ")
    if exhausted:
        tries.budget.exhausted(flight.work.tokens)
    lost = []
    for request in tenants:
        if (exhausted or len(tenants) < len(flight.segments)) and request.tries < TRIES:
            request.tries += 1
            tries.begin_again(request)
        else:
            lost.append(request)
    return lost
