"""Every frame that crosses a socket: import from here, the bytes are in docs/wire.md.

Knows no socket. ``wire_base`` holds the envelope and fencing, ``wire_step`` the frames between
stages, ``wire_gateway`` those to and from a gateway, ``wire_control`` those of membership. Use the
typed pair of a link (`encode_step`, `decode_step`, ...) where the link carries one kind, and
`encode`/`decode` where it carries several.
"""

from __future__ import annotations

from typing import TypeAlias

from lamella_contract.wire_base import (
    ENVELOPE,
    MAGIC,
    NO_INCARNATION,
    VERSION,
    Buffer,
    Envelope,
    Expected,
    Kind,
    Verdict,
    check_envelope,
    check_membership,
    decode_envelope,
)
from lamella_contract.wire_control import (
    CONTROL_KINDS,
    ControlMessage,
    Flow,
    Goodbye,
    Heartbeat,
    HeldSlot,
    Join,
    Members,
    MembersAck,
    Reject,
    decode_control,
    encode_control,
)
from lamella_contract.wire_gateway import (
    FINISHES,
    GATEWAY_KINDS,
    NO_SALT,
    Cancel,
    Ceiling,
    Events,
    GatewayMessage,
    Hello,
    PipelineStatus,
    Replay,
    StageReport,
    Submit,
    TokenEvent,
    decode_gateway,
    encode_gateway,
)
from lamella_contract.wire_step import (
    EVERY_STAGE,
    Adopt,
    Free,
    RowResult,
    Sampling,
    SegmentHeader,
    StageTime,
    StepDone,
    StepHeader,
    TensorHeader,
    decode_step,
    decode_step_done,
    encode_step,
    encode_step_done,
)

Message: TypeAlias = StepHeader | StepDone | GatewayMessage | ControlMessage

__all__ = [
    "CONTROL_KINDS",
    "ENVELOPE",
    "EVERY_STAGE",
    "FINISHES",
    "GATEWAY_KINDS",
    "MAGIC",
    "NO_INCARNATION",
    "NO_SALT",
    "VERSION",
    "Adopt",
    "Buffer",
    "Cancel",
    "Ceiling",
    "ControlMessage",
    "Envelope",
    "Events",
    "Expected",
    "Flow",
    "Free",
    "GatewayMessage",
    "Goodbye",
    "Heartbeat",
    "HeldSlot",
    "Hello",
    "Join",
    "Kind",
    "Members",
    "MembersAck",
    "Message",
    "PipelineStatus",
    "Reject",
    "Replay",
    "RowResult",
    "Sampling",
    "SegmentHeader",
    "StageReport",
    "StageTime",
    "StepDone",
    "StepHeader",
    "Submit",
    "TensorHeader",
    "TokenEvent",
    "Verdict",
    "check_envelope",
    "check_membership",
    "decode",
    "decode_control",
    "decode_envelope",
    "decode_gateway",
    "decode_step",
    "decode_step_done",
    "encode",
    "encode_control",
    "encode_gateway",
    "encode_step",
    "encode_step_done",
]


def encode(envelope: Envelope, message: Message) -> bytes:
    """Any message as one frame, under its own kind."""
    if isinstance(message, StepHeader):
        return encode_step(envelope, message)
    if isinstance(message, StepDone):
        return encode_step_done(envelope, message)
    if isinstance(message, GatewayMessage):
        return encode_gateway(envelope, message)
    return encode_control(envelope, message)


def decode(buf: Buffer) -> tuple[Envelope, Message]:
    """Any frame; raises `WireError` and nothing else."""
    kind = Kind(decode_envelope(buf).kind)
    if kind is Kind.STEP:
        return decode_step(buf)
    if kind is Kind.STEP_DONE:
        return decode_step_done(buf)
    return decode_gateway(buf) if kind in GATEWAY_KINDS else decode_control(buf)
