"""Every frame: bytes out and back, nothing but `WireError` for anything else, and fencing.

``pytest tests/contract/test_wire.py``
"""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_contract import names, wire
from lamella_contract.errors import WireError
from lamella_contract.wire import Expected, Kind, Verdict

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
IDS = st.lists(U32, max_size=6).map(tuple)
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SHORT = st.text(st.characters(codec="ascii"), max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
BYTES16 = st.binary(min_size=16, max_size=16)
COUNT = st.integers(0, 2**53)


def tuples(items: st.SearchStrategy, size: int = 4) -> st.SearchStrategy:
    return st.lists(items, max_size=size).map(tuple)


SAMPLINGS = st.builds(
    wire.Sampling,
    temperature=FINITE,
    top_p=FINITE,
    top_k=U32,
    min_p=FINITE,
    presence_penalty=FINITE,
    frequency_penalty=FINITE,
    repetition_penalty=FINITE,
    seed=U64,
    max_tokens=U32,
    stop_token_ids=IDS,
    ignore_eos=st.booleans(),
)


def with_prompt(make, **fields) -> st.SearchStrategy:
    """Messages whose prompt is a part of their ids."""
    return IDS.flatmap(
        lambda ids: st.builds(make, prompt_len=st.integers(0, len(ids)), ids=st.just(ids), **fields)
    )


def copying(pairs: list[tuple[int, int]]) -> wire.Adopt:
    """An adoption that begins with copies of blocks."""
    blocks, sources = zip(*pairs, strict=True) if pairs else ((), ())
    return wire.Adopt(1, 2, 1, (5, 6), wire.Sampling(), 1, blocks=(*blocks, 7), sources=sources)


TIMES = tuples(st.builds(wire.StageTime, U64, U64))
STEPS = st.builds(
    wire.StepHeader,
    step=U64,
    frees=tuples(st.builds(wire.Free, U32, U32)),
    adopts=tuples(
        with_prompt(wire.Adopt, slot=U32, generation=U32, sampling=SAMPLINGS, blocks=IDS)
        | st.lists(st.tuples(U32, U32), max_size=4).map(copying),
        2,
    ),
    segments=tuples(st.builds(wire.SegmentHeader, U32, U32, U32, U32, st.booleans(), IDS)),
    trace=TIMES,
    tensors=tuples(st.builds(wire.TensorHeader, TEXT, SHORT, IDS, U32), 2),
    failed=TEXT,
    through=st.integers(0, 2**16 - 1),
)
DONES = st.builds(
    wire.StepDone,
    step=U64,
    rows=tuples(st.builds(wire.RowResult, U32, U32, U32, IDS)),
    trace=TIMES,
    error=TEXT,
)
EVENTS = st.builds(
    wire.Events,
    tuples(
        st.builds(
            wire.TokenEvent,
            BYTES16,
            U32,
            U32,
            IDS,
            st.sampled_from(wire.FINISHES),
            TEXT,
            SHORT,
            FINITE.filter(lambda x: math.copysign(1, x) > 0),
            U32,
        )
    ),
)
STATES = st.sampled_from(names.STAGE_STATES)
RARE = st.one_of(
    with_prompt(wire.Submit, request_id=BYTES16, attempt=U32, sampling=SAMPLINGS, salt=BYTES16),
    st.builds(wire.Cancel, BYTES16, U32),
    st.builds(wire.Replay, BYTES16, U32, U32),
    st.builds(wire.Hello, TEXT, COUNT, TEXT),
    st.builds(wire.PipelineStatus, st.booleans(), TEXT, COUNT, COUNT, COUNT, COUNT, COUNT),
    st.builds(wire.Join, TEXT, COUNT, TEXT, COUNT, COUNT, STATES, COUNT, epoch=COUNT, version=TEXT),
    st.builds(wire.Heartbeat, COUNT, STATES, COUNT, COUNT, FINITE, TEXT, COUNT, COUNT),
    st.builds(wire.Members, BYTES16.map(bytes.hex), COUNT, TEXT, TEXT, COUNT, COUNT),
    st.builds(
        wire.MembersAck,
        COUNT,
        TEXT,
        COUNT,
        COUNT,
        st.none() | tuples(st.builds(wire.HeldSlot, U32, U32, U32)),
    ),
    st.builds(wire.Reject, TEXT, st.booleans()),
    st.builds(wire.Goodbye, COUNT, TEXT),
)
MESSAGES = st.one_of(STEPS, DONES, EVENTS, RARE)
ENVELOPES = st.builds(wire.Envelope, st.just(Kind.STEP), BYTES16, BYTES16, U32, U64)
BINARY_KINDS = {
    Kind.STEP,
    Kind.STEP_DONE,
    Kind.EVENTS,
    Kind.SUBMIT,
    Kind.CANCEL,
    Kind.REPLAY,
}
ENVELOPE = wire.Envelope(Kind.STEP, b"h" * 16, b"i" * 16, 3, 7)


@given(envelope=ENVELOPES, message=MESSAGES, as_view=st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_goes_in_comes_out(envelope, message, as_view) -> None:
    frame = wire.encode(envelope, message)
    found, back = wire.decode(memoryview(frame) if as_view else frame)
    assert back == message
    assert type(back) is type(message)
    assert dataclasses.replace(found, kind=envelope.kind) == envelope
    assert wire.decode_envelope(frame) == found


def decode_or_refuse(frame: bytes) -> None:
    """A frame is refused with `WireError`, or means one thing: it encodes to itself again."""
    try:
        envelope, message = wire.decode(frame)
    except WireError:
        return
    again = wire.encode(envelope, message)
    if envelope.kind in BINARY_KINDS:
        assert again == frame
    else:  # JSON has many spellings
        assert wire.decode(again) == (envelope, message)


@given(frame=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(frame: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(frame)


@given(kind=st.sampled_from(Kind), body=st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
def test_random_bodies_are_refused_or_mean_one_thing(kind: Kind, body: bytes) -> None:
    head = wire.ENVELOPE.pack(b"LMLA", wire.VERSION, kind, 0, b"h" * 16, b"i" * 16, 3, 7, len(body))
    decode_or_refuse(head + body)


@given(data=st.data(), message=MESSAGES)
@settings(max_examples=400, deadline=None)
def test_mutated_frames_are_refused_or_mean_one_thing(data: st.DataObject, message) -> None:
    frame = bytearray(wire.encode(ENVELOPE, message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        length = data.draw(st.integers(0, 4))
        frame[place : place + length] = data.draw(st.binary(max_size=4))
    decode_or_refuse(bytes(frame))
    if len(frame) >= wire.ENVELOPE.size:  # again with the length made true, to get further in
        frame[52:56] = (len(frame) - wire.ENVELOPE.size).to_bytes(4, "little")
        decode_or_refuse(bytes(frame))


@given(message=MESSAGES, data=st.data())
@settings(max_examples=100, deadline=None)
def test_truncated_and_longer_frames_are_refused(message, data: st.DataObject) -> None:
    frame = wire.encode(ENVELOPE, message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for wrong in (frame[:cut], frame + b"\0"):
        with pytest.raises(WireError):
            wire.decode(wrong)


STEP_FRAME = wire.encode(ENVELOPE, wire.StepHeader(1))


def patched(offset: int, raw: bytes) -> bytes:
    return STEP_FRAME[:offset] + raw + STEP_FRAME[offset + len(raw) :]


def framed(kind: Kind, body: bytes) -> bytes:
    return (
        wire.ENVELOPE.pack(b"LMLA", wire.VERSION, kind, 0, bytes(16), bytes(16), 0, 0, len(body))
        + body
    )


HEARTBEAT = (
    b'{"stage":0,"state":"ready","bytes_done":1,"bytes_total":1,"bytes_per_s":%s,"error":"",'
    b'"last_step":-1,"sequence":1}'
)
REFUSALS = {
    "empty": (b"", "frame: got 0 bytes, want at least 56"),
    "magic": (patched(0, b"HTTP"), "magic: got b'HTTP', want b'LMLA'"),
    "version": (patched(4, b"\1\0"), "version: got 1, want 3; update the older side"),
    "kind": (patched(6, b"\xff"), "kind: got 255 with reserved byte 0, want a known kind and 0"),
    "reserved": (patched(7, b"\1"), "kind: got 1 with reserved byte 1, want a known kind and 0"),
    "short body": (STEP_FRAME[:-1], "body: got 31 bytes, envelope says 32"),
    "huge count": (
        patched(68, b"\xff\xff\xff\xff"),
        f"frame: 0 bytes are left, want {8 * (2**32 - 1)}",
    ),
    "json list": (
        framed(Kind.REJECT, b"[]"),
        "document: got [], want an object with the fields of Reject",
    ),
    "json unknown": (
        framed(Kind.REJECT, b'{"reasom":"x"}'),
        "reasom: unknown field; did you mean 'reason'?",
    ),
    "json missing": (framed(Kind.REJECT, b"{}"), "reason: missing field of Reject"),
    "json type": (framed(Kind.REJECT, b'{"reason":1}'), "reason: got 1, want a string"),
    "json bool": (
        framed(Kind.GOODBYE, b'{"stage":true}'),
        "stage: got True, want a whole number",
    ),
    "json twice": (
        framed(Kind.REJECT, b'{"reason":"a","reason":"b"}'),
        "not valid JSON: key 'reason' stands twice",
    ),
    "json NaN": (framed(Kind.HEARTBEAT, HEARTBEAT % b"NaN"), "not valid JSON: NaN is no JSON"),
    "json infinity": (
        framed(Kind.HEARTBEAT, HEARTBEAT % b"1e999"),
        "bytes_per_s: got inf, want a finite number",
    ),
    "json huge": (
        framed(Kind.HEARTBEAT, HEARTBEAT % (b"1" * 400)),
        "bytes_per_s: got 1111",
    ),
    "json deep": (framed(Kind.REJECT, b"[" * 100_000), "not valid JSON: "),
    "json state": (
        framed(Kind.HEARTBEAT, HEARTBEAT.replace(b"ready", b"reedy") % b"1"),
        "state: got 'reedy', want one of loading, ready, failed",
    ),
    "json not UTF-8": (framed(Kind.REJECT, b"\xff\xfe{"), "not valid JSON: "),
    "incarnation": (
        framed(Kind.MEMBERS, b'{"incarnation":"ab","epoch":1,"next_address":""}'),
        "incarnation: got 'ab', want 32 hex digits",
    ),
}


@pytest.mark.parametrize(("frame", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_was_got_and_wanted(frame: bytes, message: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode(frame)
    assert str(caught.value).startswith(message)


def test_a_prompt_longer_than_its_ids_is_refused() -> None:
    adopt = wire.Adopt(0, 0, 3, (1, 2), wire.Sampling())
    with pytest.raises(WireError, match="prompt of 3, 0 held, in 2 ids"):
        wire.decode(wire.encode(ENVELOPE, wire.StepHeader(1, adopts=(adopt,))))
    adopt = wire.Adopt(0, 0, 1, (1, 2), wire.Sampling(), held=3)
    with pytest.raises(WireError, match="prompt of 1, 3 held, in 2 ids"):
        wire.decode(wire.encode(ENVELOPE, wire.StepHeader(1, adopts=(adopt,))))
    adopt = wire.Adopt(0, 0, 1, (1, 2), wire.Sampling(), blocks=(3,), sources=(4, 5))
    with pytest.raises(WireError, match="2 sources for 1 blocks"):
        wire.decode(wire.encode(ENVELOPE, wire.StepHeader(1, adopts=(adopt,))))
    submit = wire.Submit(b"r" * 16, 0, 3, (1, 2), wire.Sampling())
    with pytest.raises(WireError, match="prompt of 3 in 2 ids"):
        wire.decode(wire.encode(ENVELOPE, submit))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_sampling_by_no_number_is_refused(value: float) -> None:
    submit = wire.Submit(b"r" * 16, 0, 0, (), wire.Sampling(temperature=value))
    with pytest.raises(WireError, match="sampling"):
        wire.decode(wire.encode(ENVELOPE, submit))


UNPACKABLE = {
    "negative step": wire.StepHeader(-1),
    "slot beyond u32": wire.StepHeader(1, frees=(wire.Free(2**32, 0),)),
    "negative block": wire.StepHeader(1, segments=(wire.SegmentHeader(0, 0, 0, 1, True, (-1,)),)),
    "long tensor name": wire.StepHeader(1, tensors=(wire.TensorHeader("x" * 256, "", (), 1),)),
    "huge id": wire.StepDone(1, (wire.RowResult(0, 0, 0, (2**32,)),)),
    "short request id": wire.Cancel(b"r", 0),
    "short salt": wire.Submit(b"r" * 16, 0, 0, (), wire.Sampling(), b"s"),
    "unknown finish": wire.Events((wire.TokenEvent(b"r" * 16, 0, 0, (), "tired"),)),
    "huge float": wire.Submit(b"r" * 16, 0, 0, (), wire.Sampling(temperature=10**400)),
    "heartbeat of NaN": wire.Heartbeat(0, "ready", 0, 0, math.nan, "", 0, 0),
}


@pytest.mark.parametrize("message", UNPACKABLE.values(), ids=UNPACKABLE)
def test_numbers_out_of_range_are_refused_at_the_sender(message) -> None:
    with pytest.raises(WireError):
        wire.encode(ENVELOPE, message)


def test_an_envelope_of_the_wrong_width_is_not_padded() -> None:
    with pytest.raises(WireError, match="16 bytes"):
        wire.encode(dataclasses.replace(ENVELOPE, config_hash=b"h"), wire.StepHeader(1))


def test_a_long_error_is_cut_within_its_limit_and_characters() -> None:
    frame = wire.encode(ENVELOPE, wire.StepDone(1, error="€" * 5000))
    _, done = wire.decode_step_done(frame)
    assert done.error == "€" * (4096 // 3)


def test_a_link_refuses_the_frames_of_another() -> None:
    with pytest.raises(WireError, match="kind: got STEP, want STEP_DONE"):
        wire.decode_step_done(STEP_FRAME)
    with pytest.raises(WireError, match="kind: got STEP, want HELLO or"):
        wire.decode_gateway(STEP_FRAME)
    with pytest.raises(WireError, match="kind: got STEP, want JOIN or"):
        wire.decode_control(STEP_FRAME)


EXPECTED = Expected(b"h" * 16, b"i" * 16, epoch=3, sequence=7)
FENCES = {
    "as expected": ({}, Verdict.ACCEPT),
    "configured otherwise": ({"config_hash": b"x" * 16}, Verdict.FOREIGN),
    "configured otherwise and old": ({"config_hash": b"x" * 16, "epoch": 1}, Verdict.FOREIGN),
    "another scheduler's": ({"incarnation": b"x" * 16}, Verdict.STALE),
    "another scheduler's, higher epoch": (
        {"incarnation": b"x" * 16, "epoch": 9},
        Verdict.STALE,
    ),
    "earlier membership": ({"epoch": 2}, Verdict.STALE),
    "earlier membership, later frame": ({"epoch": 2, "sequence": 99}, Verdict.STALE),
    "membership not heard of": ({"epoch": 4, "sequence": 0}, Verdict.GAP),
    "seen before": ({"sequence": 6}, Verdict.STALE),
    "one missing": ({"sequence": 8}, Verdict.GAP),
}


@pytest.mark.parametrize(("change", "verdict"), FENCES.values(), ids=FENCES)
def test_fencing(change: dict[str, object], verdict: Verdict) -> None:
    envelope = dataclasses.replace(ENVELOPE, **change)
    assert wire.check_envelope(envelope, EXPECTED) is verdict
    if "sequence" not in change:
        assert wire.check_membership(envelope, EXPECTED) is verdict


@given(order=st.lists(st.integers(0, 5), max_size=30))
def test_a_link_takes_each_frame_once_and_in_order(order: list[int]) -> None:
    expected = dataclasses.replace(EXPECTED, sequence=0)
    taken = []
    for sequence in order:
        envelope = dataclasses.replace(ENVELOPE, sequence=sequence)
        if wire.check_envelope(envelope, expected) is Verdict.ACCEPT:
            taken.append(sequence)
            expected = expected.after(envelope)
    assert taken == list(range(len(taken)))
