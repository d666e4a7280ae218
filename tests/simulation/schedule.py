"""What happens in one simulated run, as data: the setup and a list of steps. JSON, to be replayed.

A step is ``[gap_ms, kind, a, b, c]``: after the gap, something of that kind befalls. The three
numbers say whom and for how long; any numbers mean something in any setup, so that a list that was
shortened is still a schedule.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

KINDS: dict[str, int] = {  # and how often, among a hundred or so
    "submit": 30,
    "burst": 6,
    "hang_up": 5,
    "kill": 12,
    "power_off": 4,
    "stop": 4,
    "freeze": 4,
    "wedge": 1,
    "slow_step": 3,
    "exhaust": 2,
    "cut": 6,
    "reset": 4,
    "drop": 4,
    "double": 2,
    "swap": 3,
    "garble": 3,
    "echo": 3,
    "delay": 2,
    "gateway_kill": 3,
    "gateway_stop": 2,
    "drain": 2,
    "dns": 1,
}
FRIENDLY = ("submit", "burst", "hang_up")
GAPS_MS = (0, 1, 3, 7, 20, 60, 150, 400, 1000, 2500)
DURATIONS_S = (0.1, 0.3, 0.6, 1.2, 2.0, 3.5, 5.0, 8.0)
RESTARTS_S = (0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0, 30.0)
MOST = 1 << 16

Step = tuple[int, str, int, int, int]


@dataclass(frozen=True)
class Schedule:
    """`stages` has one number per pipeline; `blocks` of KV are those of each."""

    seed: int = 0
    stages: tuple[int, ...] = (2,)
    gateways: int = 1
    blocks: int = 24
    sequences: int = 4
    recurrent: bool = False
    steps: tuple[Step, ...] = field(default=())

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        document: dict[str, Any] = json.loads(text)
        document["stages"] = tuple(document["stages"])
        document["steps"] = tuple(tuple(step) for step in document["steps"])
        return cls(**document)

    @property
    def faults(self) -> list[Step]:
        return [step for step in self.steps if step[1] not in FRIENDLY]

    def without(self, *indices: int) -> Schedule:
        """With the gaps of what is left out given to what follows."""
        left: list[Step] = []
        gap = 0
        for index, step in enumerate(self.steps):
            if index in indices:
                gap += step[0]
            else:
                left.append((step[0] + gap, *step[1:]))
                gap = 0
        return replace(self, steps=tuple(left))


def random_schedule(seed: int) -> Schedule:
    """Any of them; small ones more often."""
    draw = random.Random(seed)
    pipelines = draw.choice((1, 1, 1, 1, 2, 2))
    stages = (1, 2, 2, 3, 3, 4) if pipelines == 1 else (1, 2, 2, 3)
    kinds, weights = list(KINDS), list(KINDS.values())
    first: list[Step] = [
        (draw.choice(GAPS_MS[:6]), "submit", draw.randrange(MOST), draw.randrange(MOST), 0)
        for _ in range(draw.randint(1, 3))
    ]
    steps = [
        (
            draw.choice(GAPS_MS),
            draw.choices(kinds, weights)[0],
            draw.randrange(MOST),
            draw.randrange(MOST),
            draw.randrange(MOST),
        )
        for _ in range(draw.randint(2, 10))
    ]
    return Schedule(
        seed=seed,
        stages=tuple(draw.choice(stages) for _ in range(pipelines)),
        gateways=draw.choice((1, 1, 1, 2, 2, 3)),
        blocks=draw.choice((12, 14, 18, 30)),
        sequences=draw.choice((1, 2, 3, 5)),
        recurrent=draw.random() < 0.25,
        steps=(*first, *steps),
    )
