"""When a stage's process that ended is started again. Pure: no processes, time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field

EXIT_PERMANENT = 78
"""A stage ends with this code when trying again cannot help: a bad model, file or setting."""

FIRST_DELAY_S = 0.0
LONGEST_DELAY_S = 30.0
STABLE_AFTER_S = 60.0
"""A process that lived this long is forgiven its earlier crashes."""


@dataclass(slots=True)
class Restarts:
    """Crash history of one stage: at once the first time, then 0.5, 1, 2 … 30 s."""

    crashes: int = 0
    total: int = field(default=0)

    def delay_s(self, exit_code: int, uptime_s: float) -> float | None:
        """Seconds to wait before the next start, or None when the stage must not be started."""
        if exit_code == EXIT_PERMANENT:
            return None
        if uptime_s >= STABLE_AFTER_S:
            self.crashes = 0
        self.crashes += 1
        self.total += 1
        if self.crashes == 1:
            return FIRST_DELAY_S
        return float(min(LONGEST_DELAY_S, 0.5 * 2.0 ** (self.crashes - 2)))
