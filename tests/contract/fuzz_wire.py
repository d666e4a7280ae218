"""Coverage-guided fuzzing of the wire: ``python tests/contract/fuzz_wire.py -runs=20000``.

Whatever the bytes, decoding raises `WireError` or returns a message; a message of a binary kind
encodes to the very same bytes again. The input's first byte picks a kind and whether a true
envelope is put in front, so that the fuzzer need not guess lengths to get into the bodies.
Takes libFuzzer's options. Needs atheris; `test_wire_fuzz.py` runs it for a bounded time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lamella_contract"]):
    from lamella_contract import wire
    from lamella_contract.errors import WireError

KINDS = tuple(wire.Kind)
JSON_KINDS = {
    wire.Kind.HELLO,
    wire.Kind.PIPELINE_STATUS,
    *wire.CONTROL_KINDS,
}


def test_one_input(data: bytes) -> None:
    if not data:
        return
    choice, body = data[0] % (len(KINDS) + 1), data[1:]
    frame = body
    if choice < len(KINDS):
        head = (b"LMLA", wire.VERSION, KINDS[choice], 0, bytes(16), bytes(16), 0, 0, len(body))
        frame = wire.ENVELOPE.pack(*head) + body
    try:
        envelope, message = wire.decode(frame)
    except WireError:
        return
    again = wire.encode(envelope, message)
    if envelope.kind not in JSON_KINDS and again != frame:
        raise AssertionError(f"{frame!r} means {message!r}, which is {again!r}")


def samples() -> list[wire.Message]:
    """One full message of each kind to start from."""
    sampling = wire.Sampling(stop_token_ids=(2,))
    step = wire.StepHeader(
        5,
        frees=(wire.Free(1, 2),),
        adopts=(wire.Adopt(0, 1, 2, (5, 6, 7), sampling, 3, (4,), (6,)),),
        segments=(wire.SegmentHeader(0, 1, 0, 3, True, (9,)),),
        trace=(wire.StageTime(10, 20),),
        tensors=(wire.TensorHeader("hidden", "bfloat16", (3, 64), 1),),
        failed="no",
        through=1,
    )
    event = wire.TokenEvent(bytes(16), 1, 2, (3,), "error", "gone", "stage_lost", 1.0, 16)
    return [
        step,
        wire.StepDone(5, (wire.RowResult(0, 1, 3, (8,)),), (wire.StageTime(1, 2),), "no"),
        wire.Hello("gateway-0"),
        wire.Submit(bytes(16), 1, 2, (5, 6, 7), sampling),
        wire.Cancel(bytes(16), 1),
        wire.Replay(bytes(16), 1, 2),
        wire.Events((event,)),
        wire.PipelineStatus(True, "", 1, 1, 0, 0, 0),
        wire.Join("stage-1", 1, "tcp://127.0.0.1:1", 1, 1, "ready", 1),
        wire.Heartbeat(1, "ready", 1, 1, 1.5, "", -1, 1),
        wire.Members("00" * 16, 1, "tcp://127.0.0.1:1"),
        wire.MembersAck(1, "00" * 16, 1, 7, (wire.HeldSlot(0, 1, 3),)),
        wire.Reject("no"),
        wire.Goodbye(1, "done"),
    ]


def main() -> None:
    envelope = wire.Envelope(wire.Kind.STEP, bytes(16), bytes(16), 0, 0)
    with tempfile.TemporaryDirectory() as corpus:
        for message in samples():
            frame = wire.encode(envelope, message)
            kind = wire.decode_envelope(frame).kind
            choice = KINDS.index(wire.Kind(kind))
            Path(corpus, f"{kind}").write_bytes(bytes([choice]) + frame[wire.ENVELOPE.size :])
            Path(corpus, f"{kind}-whole").write_bytes(bytes([len(KINDS)]) + frame)
        atheris.Setup([*sys.argv, corpus], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
