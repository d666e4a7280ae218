"""`infer_tensor`'s compute: one request's new input through the model, as a batch of one request.

It knows no event loop and no loading. The engine calls it on its own thread, under its lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamella_checkpoint.cuts import text_config
from lamella_contract.errors import UnsupportedFamily
from lamella_worker.engine_base import FIRST_CACHE_TOKENS, SESSION_SLOTS, EngineBase
from lamella_worker.engine_errors import InputTooLong, InvalidInput, SessionLost
from lamella_worker.engine_inputs import make_batch, make_bundle, take_output
from lamella_worker.engine_sessions import Input, Session
from lamella_worker.hf.bundles import Boundary, boundary_of
from lamella_worker.model import ShardedGeneralModel
from lamella_worker.oom import is_out_of_memory
from lamella_worker.shard import Shard
from lamella_worker.state import ShardInferenceState

BLOCK_TOKENS = 16
CHUNK_TOKENS = 2048  # rows of one step of a long prompt; bounds the scratch of attention

Answer = tuple[NDArray[np.float32], dict[str, int]] | tuple[None, None]


def infer(
    engine: EngineBase, request_id: str, shard: Shard, data: Input, start: int | None
) -> Answer:
    """Compute `data` for a request; (None, None) when memory ran out and the model was freed.

    `start` is the position of the first token, as the state that came with it says; None: where
    the request stands. Another error leaves the request where it was.
    """
    session = find_session(engine, request_id, data, start)
    limit, end = engine.max_tokens, session.state.position + data.shape[1]
    if limit is not None and end > limit:
        raise InputTooLong(f"request {request_id!r} would hold {end} tokens, the model {limit}")
    frugal = False
    while True:
        try:
            output = _compute(engine, session, shard, data, frugal)
            break
        except Exception as error:  # out of memory has no type of its own on most devices
            session.slots, session.cached = (), 0  # half-written
            if not is_out_of_memory(error):
                raise
            reason = str(error) or type(error).__name__
        # Outside the except block: the failed call's tensors are free only now.
        smaller = engine.enable_cache and not engine.cache_initialized  # the cache did not fit
        if frugal or not (engine.sessions.evict_others(session) or smaller):
            engine._out_of_memory(reason)
            return None, None
        engine._free_scratch()
        frugal = True
    session.advance(data, cached=engine.enable_cache)
    engine.sessions.put(session)
    engine.current_request_id = request_id
    engine.inference_state = session.state
    return output, session.state.to_dict()


def find_session(engine: EngineBase, request_id: str, data: Input, start: int | None) -> Session:
    """The request's session where `start` meets it, or a new one at position 0."""
    session = engine.sessions.get(request_id)
    if session is None or start == 0:
        if start:
            raise SessionLost(
                f"request {request_id!r} is not known here, but its input starts at position "
                f"{start}; send it again from position 0"
            )
        return Session(request_id, rows=data.shape[0])
    position = session.state.position
    if start not in (None, position):
        raise SessionLost(
            f"request {request_id!r} stands at position {position}, its input starts at {start}"
        )
    if session.rows != data.shape[0]:
        raise InvalidInput(
            f"request {request_id!r} has {session.rows} rows, the input has {data.shape[0]}"
        )
    return session


def start_of(shard: Shard, state: Any, count: int) -> int | None:
    """Position of the first of `count` tokens, by the state that came with them; None: unsaid.

    A state's position counts the tokens that its sender had processed. A first stage's input is
    new, so it starts there; a later stage's input is what the sender had just processed.
    """
    if state is None:
        return None
    if isinstance(state, ShardInferenceState):
        state = state.to_dict()
    if not isinstance(state, Mapping):
        raise InvalidInput(f"inference_state is a {type(state).__name__}, wanted a dict or null")
    if state.get("position") is None:
        return None
    position = ShardInferenceState.from_dict(state).position
    if shard.is_first:
        return position
    if position < count:
        raise InvalidInput(
            f"inference_state has position {position}, but {count} tokens came with it"
        )
    return position - count


def _compute(
    engine: EngineBase, session: Session, shard: Shard, data: Input, frugal: bool
) -> NDArray[np.float32]:
    model = engine.model_instance
    ours = isinstance(model, ShardedGeneralModel)
    if ours:
        check_boundary(shard, model)
    end = session.state.position + data.shape[1]
    if engine.enable_cache or ours:  # our model computes in pages even when none are kept
        _make_room(engine, session, end, frugal)
        engine.sessions.take_slots(session)
    else:
        session.slots = tuple(range(session.rows))
    chunk = session.pending(data)
    first, total = end - chunk.shape[1], chunk.shape[1]
    size = CHUNK_TOKENS if ours else total
    slot_blocks = -(-(engine._cache_length or end) // BLOCK_TOKENS)
    hidden: list[torch.Tensor] = []
    logits: torch.Tensor | None = None
    for at in range(0, total, size):
        part = chunk[:, at : at + size]
        count = part.shape[1]
        batch = make_batch(
            session.slots,
            first + at,
            count,
            slot_blocks,
            BLOCK_TOKENS,
            sample=shard.is_last and at + count == total,
        )
        bundle = make_bundle(part, model.dtype, model.device) if ours else make_bundle(part)
        some, logits = model.generate(batch, bundle)
        if some is not None:
            hidden.append(some if some.ndim == 3 else some.reshape(session.rows, count, -1))
    joined = torch.cat(hidden, dim=1) if hidden else None
    return take_output(shard, joined, logits, data.shape[1])


def check_boundary(shard: Shard, model: ShardedGeneralModel) -> None:
    """UnsupportedFamily for a cut that more than hidden states cross: one array cannot say it.

    The stage's `step` carries whole bundles and serves those families.
    """
    family = text_config(model.config).model_type
    if not (shard.is_first and shard.is_last) and boundary_of(family) != Boundary():
        raise UnsupportedFamily(
            f"model_type={family!r} cut at layers {shard.layers}: infer_tensor hands on hidden "
            "states only and this family needs more; use step, or one shard for all layers"
        )


def _make_room(engine: EngineBase, session: Session, end: int, frugal: bool) -> None:
    """A cache that holds the session; `frugal`: no more than that, memory is short."""
    if engine.cache_initialized and engine._cache_length is None:
        engine._cache_length, engine._cache_rows = end, session.rows
        engine.sessions.new_cache(session.rows, 0)
    known = engine._cache_length or 0
    rows, length = session.rows, end
    if not frugal:
        rows = max(rows, engine._cache_rows or SESSION_SLOTS)
        if end > known:
            length = max(end, 2 * known, FIRST_CACHE_TOKENS)
            limit = engine.max_tokens
            length = length if limit is None else min(length, limit)
    engine._reserve(rows, length)
