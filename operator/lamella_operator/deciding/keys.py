"""When key pairs must exist: before a pod is made, and while one cannot start.

Secrets are not listed (the operator has no right to), so nothing here knows whether they exist;
making them twice is harmless. Knows roles and generations, no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamella_operator.actions import Action, Apply, Create, EnsureKeys
from lamella_operator.deciding.words import IMAGE
from lamella_operator.desired.configs import roles
from lamella_operator.revision import Revision
from lamella_operator.views import Observed

LATE_S = 15.0
"""A container that does not run so long after its pod was made may lack its Secret."""


def ensure(
    observed: Observed, planned: Sequence[Action], revisions: Iterable[Revision]
) -> list[Action]:
    """What must be made before ``planned``; ``revisions`` are those that pods are made from."""
    if not (_makes_pods(planned) or _late(observed)):
        return []
    stages: dict[int, int] = {}
    for revision in revisions:
        generation = revision.key_generation
        stages[generation] = max(stages.get(generation, 0), revision.stages)
    return [EnsureKeys(roles(count), generation) for generation, count in sorted(stages.items())]


def _makes_pods(planned: Sequence[Action]) -> bool:
    """Stages' pods, or a Deployment of gateways; an inspector has no key."""
    made = [action.manifest for action in planned if isinstance(action, Create | Apply)]
    return any(manifest["kind"] in ("Pod", "Deployment") for manifest in made)


def _late(observed: Observed) -> bool:
    return any(
        pod.scheduled
        and not pod.running
        and pod.deleted_s is None
        and pod.phase == "Pending"
        and pod.waiting_reason not in IMAGE
        and observed.now_s - pod.created_s > LATE_S
        for pod in (*observed.pods, *observed.gateway_pods)
    )
