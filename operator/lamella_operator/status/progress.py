"""Numbers of a situation: how many pipelines and stages, how many bytes, how fast, how long yet.

Words nothing but numbers, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lamella_contract.units import human
from lamella_operator.actions import ReplicaSituation, Situation, StageSituation

LOADED = ("Loaded", "Ready")
GOING = "Draining"


@dataclass(frozen=True, slots=True)
class Counts:
    """Pipelines that are there and not going, and stages that are wanted."""

    wanted: int
    ready: int
    updated: int
    updated_ready: int
    existing: int
    stages_wanted: int | None  # None: not known yet
    stages_loaded: int
    stages_placed: int

    @classmethod
    def of(cls, situation: Situation) -> Counts:
        staying = [replica for replica in situation.replicas if replica.state != GOING]
        each = 0 if situation.plan is None else len(situation.plan.stages)
        wanted = situation.wanted_replicas
        return cls(
            wanted=wanted,
            ready=sum(replica.ready for replica in staying),
            updated=sum(replica.updated for replica in staying),
            updated_ready=sum(replica.updated and replica.ready for replica in staying),
            existing=len(staying),
            stages_wanted=each * wanted if each or not wanted else None,
            stages_loaded=_most(staying, wanted, LOADED),
            stages_placed=_most(staying, wanted, (*LOADED, "Creating", "Loading")),
        )

    @property
    def ready_text(self) -> str:
        return f"{self.ready}/{self.wanted}"

    @property
    def stages_text(self) -> str:
        of = "?" if self.stages_wanted is None else self.stages_wanted
        return f"{self.stages_loaded}/{of}"


@dataclass(frozen=True, slots=True)
class Loading:
    """Bytes of all slices of pipelines that are not ready, and of those being read."""

    done: int
    total: int
    per_s: float
    eta_s: int | None

    @classmethod
    def of(cls, replicas: Iterable[ReplicaSituation]) -> Loading:
        stages = [
            stage
            for replica in replicas
            if not replica.ready and replica.state != GOING
            for stage in replica.stages
        ]
        reading = [stage for stage in stages if stage.state == "Loading" and stage.bytes_total]
        times = [eta_s(stage) for stage in reading]
        return cls(
            done=sum(min(stage.bytes_done, stage.bytes_total) for stage in stages),
            total=sum(stage.bytes_total for stage in stages),
            per_s=sum(stage.bytes_per_s for stage in reading),
            eta_s=max((time for time in times if time is not None), default=None),
        )

    @property
    def is_read(self) -> bool:
        """Whether bytes come in; before that there is no number worth telling."""
        return self.per_s >= 1 and self.total > 0

    @property
    def text(self) -> str:
        """``12.3 GiB of 30.5 GiB (40%), 1.2 GiB/s, 15 s left``."""
        if not self.total:
            return "its size is not known yet"
        found = f"{human(self.done)} of {human(self.total)} ({100 * self.done // self.total}%)"
        if self.per_s >= 1:
            found += f", {human(int(self.per_s))}/s"
        return found if self.eta_s is None else f"{found}, {duration(self.eta_s)} left"


def eta_s(stage: StageSituation) -> int | None:
    """Seconds until the slice is read, at its present speed; None: unknown."""
    if stage.bytes_per_s < 1 or not stage.bytes_total:
        return None
    left = max(stage.bytes_total - stage.bytes_done, 0)
    return int(-(-left // stage.bytes_per_s))


def percent(stage: StageSituation) -> int:
    """Of its slice, 0 to 100."""
    return min(100 * stage.bytes_done // max(stage.bytes_total, 1), 100)


def duration(seconds: int) -> str:
    """``15 s``, ``3 min``, ``2.5 h``."""
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _most(replicas: Iterable[ReplicaSituation], wanted: int, states: tuple[str, ...]) -> int:
    """Stages in ``states`` of the ``wanted`` pipelines that have most of them."""
    counts = sorted(
        (sum(stage.state in states for stage in replica.stages) for replica in replicas),
        reverse=True,
    )
    return sum(counts[:wanted])
