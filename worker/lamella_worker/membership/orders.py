"""What the control thread and the compute thread of a stage tell each other.

Values only. The ring's own actions (`Probe`, `Serve`, `Pause`) cross as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lamella_contract.wire import Cancel, HeldSlot, Replay, Submit, TokenEvent
from lamella_worker.membership.ring import Pause, Probe, Serve


@dataclass(frozen=True, slots=True)
class Relink:
    """Drop the frames in flight, and all sequences if the incarnation is another; from now on send
    to `next_address`.

    `next_role` names whose key answers there.
    """

    incarnation: bytes  # 16 bytes
    epoch: int
    next_address: str
    next_role: str


@dataclass(frozen=True, slots=True)
class FromGateway:
    """A gateway's message, and which gateway it was (its role's name)."""

    owner: bytes
    message: Submit | Cancel | Replay


@dataclass(frozen=True, slots=True)
class DropOwner:
    """A gateway is gone: free everything that it had submitted."""

    owner: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """The slice is in memory and its cache set up."""


@dataclass(frozen=True, slots=True)
class Linked:
    """The Relink of this epoch is done: old frames are dropped and the next stage answers.

    `held` is what this stage kept of sequences; None: it never keeps any.
    """

    epoch: int
    held: tuple[HeldSlot, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Resume:
    """All stages are linked under this epoch; what each of them kept, the first stage's first."""

    epoch: int
    held: tuple[tuple[HeldSlot, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """A frame of this epoch was lost or could not be trusted."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Probed:
    """The probe of this epoch came back."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ToGateway:
    """News for one gateway."""

    owner: bytes
    events: tuple[TokenEvent, ...]


Order: TypeAlias = Relink | Resume | Probe | Serve | Pause | FromGateway | DropOwner
"""From the control thread to the compute thread."""

Report: TypeAlias = Loaded | Linked | Broken | Probed | ToGateway
"""From the compute thread to the control thread."""
