"""What one decision has found so far: filled step by step by `decide`, read by `telling`.

Lives for one call. Decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella_operator.actions import Note
from lamella_operator.deciding.resolving import Resolution
from lamella_operator.deciding.revisions import Target
from lamella_operator.deciding.rolling import Rollout
from lamella_operator.deciding.slots import Pipeline
from lamella_operator.revision import Revision

NOTHING_ROLLED = Rollout((), (), ())


@dataclass(slots=True)
class Course:
    """What is found while deciding. ``current`` is the revision that pods are wanted of (in a
    frozen model the newest that is used); ``target`` is None where the manifest asks for none.
    ``pauses`` is when each replica gave way; ``given_up`` has a note per stage and replica."""

    known: dict[str, Revision]
    resolution: Resolution | None = None
    target: Target | None = None
    refused: Note | None = None
    current: Revision | None = None
    pipelines: tuple[Pipeline, ...] = ()
    rollout: Rollout = NOTHING_ROLLED
    make: tuple[int, ...] = ()
    pauses: dict[int, float] = field(default_factory=dict)
    yielding: set[int] = field(default_factory=set)
    given_up: dict[int, dict[int, Note]] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        return "" if self.current is None else self.current.hash
