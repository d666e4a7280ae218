"""Frames of the control link: a stage joins, reports, is told its neighbours, leaves.

Knows no socket and takes no decision. They are rare, so their bodies are JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lamella_contract import names
from lamella_contract.errors import WireError
from lamella_contract.wire_base import Buffer, Envelope, Kind, open_as, seal
from lamella_contract.wire_json import read_json, write_json


@dataclass(frozen=True, slots=True)
class Join:
    """A stage makes itself known to stage 0, before it loads and again after a reconnect.

    ``data_address`` is where its upstream neighbour must dial; ``num_blocks`` is how many cache
    blocks it can hold (0 while unknown). ``incarnation`` (hex) and ``epoch`` are the newest
    membership that it has seen, so that a new scheduler can go above. ``process`` names this run
    of the stage: ``<pod>.<random>``. Another one means another process in the stage's place, and
    another pod that all processes of the one before are replaced for good.
    """

    role: str
    stage: int
    data_address: str
    http_port: int
    pid: int
    state: str
    num_blocks: int
    incarnation: str = ""
    epoch: int = 0
    version: str = ""
    process: str = ""

    def __post_init__(self) -> None:
        _state(self.state)


@dataclass(frozen=True, slots=True)
class Flow:
    """What went over a stage's data links in the envelope's epoch: frames taken, and frames sent.

    ``largest`` is the greatest of those sent, in bytes; ``busy``: a step is being computed.
    """

    taken: int = 0
    sent: int = 0
    largest: int = 0
    busy: bool = False


NO_FLOW = Flow()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How a stage is; ``sequence`` counts its heartbeats, ``last_step`` is -1 before the first.

    ``error`` with state ``ready``: a frame of the envelope's epoch was lost or is not to be
    trusted, and the stage asks for a new epoch. Stage 0 sends its own heartbeat to the others.
    """

    stage: int
    state: str
    bytes_done: int
    bytes_total: int
    bytes_per_s: float
    error: str
    last_step: int
    sequence: int
    flow: Flow = NO_FLOW

    def __post_init__(self) -> None:
        _state(self.state)


@dataclass(frozen=True, slots=True)
class Members:
    """The membership from now on: under which incarnation (hex) and epoch to send, and to whom.

    ``next_address`` is the data address of ``next_role``; the last stage's next is stage 0.
    ``credit`` is how many steps may be in flight.
    """

    incarnation: str
    epoch: int
    next_address: str
    next_role: str = ""
    stages: int = 0
    credit: int = 0

    def __post_init__(self) -> None:
        try:
            size = len(bytes.fromhex(self.incarnation))
        except ValueError:
            size = -1
        if size != 16:
            raise WireError(f"incarnation: got {self.incarnation!r}, want 32 hex digits")


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A stage kept the first ``length`` positions of a slot's tenure, for certain."""

    slot: int
    generation: int
    length: int


@dataclass(frozen=True, slots=True)
class MembersAck:
    """A stage has dropped what was in flight and dialled its next under this membership.

    ``held`` is what it kept of sequences from earlier epochs of this incarnation; None: it has
    state that cannot go back, so that it never keeps anything.
    """

    stage: int
    incarnation: str
    epoch: int
    last_step: int = -1
    held: tuple[HeldSlot, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """Stage 0 will not have this peer; ``reason`` says what to mend.

    ``replaced``: a newer process has its place, and it is to end without trying again.
    """

    reason: str
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A stage leaves on purpose."""

    stage: int = -1
    reason: str = ""


ControlMessage: TypeAlias = Join | Heartbeat | Members | MembersAck | Reject | Goodbye
CONTROL_KINDS: dict[Kind, type[ControlMessage]] = {
    Kind.JOIN: Join,
    Kind.HEARTBEAT: Heartbeat,
    Kind.MEMBERS: Members,
    Kind.MEMBERS_ACK: MembersAck,
    Kind.REJECT: Reject,
    Kind.GOODBYE: Goodbye,
}
_KIND_OF = {cls: kind for kind, cls in CONTROL_KINDS.items()}


def encode_control(envelope: Envelope, message: ControlMessage) -> bytes:
    """One frame."""
    return seal(envelope, _KIND_OF[type(message)], write_json(message))


def decode_control(buf: Buffer) -> tuple[Envelope, ControlMessage]:
    """Undo `encode_control`; raises `WireError` and nothing else."""
    envelope, kind, reader = open_as(buf, *CONTROL_KINDS)
    message: ControlMessage = read_json(CONTROL_KINDS[kind], reader)
    return envelope, message


def _state(state: str) -> None:
    if state not in names.STAGE_STATES:
        raise WireError(f"state: got {state!r}, want one of {', '.join(names.STAGE_STATES)}")
