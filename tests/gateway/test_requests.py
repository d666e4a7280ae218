"""Request bodies become values, or errors that name a field; nothing else comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_gateway.errors import ApiError
from lamella_gateway.openai_requests import (
    ChatRequest,
    Message,
    Options,
    decode_json,
    parse_chat,
    parse_completion,
)

DEFAULTS = Options(
    stream=False,
    include_usage=False,
    stop=(),
    max_tokens=None,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=None,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    ignore_eos=False,
)
ASK = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}


def test_defaults() -> None:
    assert parse_chat(ASK) == ChatRequest("toy", (Message("user", "hi"),), DEFAULTS)


def test_null_is_left_out() -> None:
    fields = [name for name in Options.__dataclass_fields__ if name != "include_usage"]
    others = ["n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "user"]
    assert parse_chat(ASK | dict.fromkeys([*fields, *others])).options == DEFAULTS


def test_what_clients_send_by_default_changes_nothing() -> None:
    harmless: dict[str, Any] = {
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "logit_bias": {},
        "store": False,
        "metadata": {},
        "user": "u",
        "service_tier": "auto",
        "modalities": ["text"],
        "stream_options": None,
        "top_k": -1,
    }
    assert parse_chat(ASK | harmless).options == DEFAULTS
    text = {"echo": False, "suffix": "", "best_of": 1, "logprobs": None}
    assert parse_completion({"model": "toy", "prompt": "x"} | text).options == DEFAULTS


def test_parts_are_joined_and_an_answer_can_be_sent_back() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    sent_back = {
        "role": "assistant",
        "content": "c",
        "refusal": None,
        "tool_calls": None,
        "function_call": None,
        "audio": None,
        "annotations": [],
    }
    document = {"messages": [{"role": "user", "name": "me", "content": parts}, sent_back]}
    assert parse_chat(document).messages == (Message("user", "ab", "me"), Message("assistant", "c"))


def test_the_two_names_of_the_limit() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert parse_chat(ASK | {name: 7}).options.max_tokens == 7
    assert parse_chat(ASK | {"max_tokens": 7, "max_completion_tokens": 7}).options.max_tokens == 7


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = [*Options.__dataclass_fields__, "model", "messages", "prompt", "stream_options", "n"]
messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), anything | st.just("user")),
    max_size=3,
)
documents = anything | st.fixed_dictionaries(
    {"messages": messages | anything, "prompt": anything},
    optional={name: anything for name in NAMES if name not in ("messages", "prompt")},
)


def refusal(parse: Callable[[Any], object], given_: object) -> ApiError | None:
    try:
        parse(given_)
    except ApiError as error:
        return error
    return None


@settings(deadline=None)  # a busy machine is no failure
@given(documents)
def test_nothing_but_a_value_or_an_error_comes_out(document: object) -> None:
    for parse in (parse_chat, parse_completion):
        error = refusal(parse, document)
        if error is not None:
            assert error.status == 400
            assert json.loads(error.body())["error"]["message"]


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=50))
def test_any_bytes(body: bytes) -> None:
    error = refusal(decode_json, body)
    assert error is None or error.status == 400


@pytest.mark.parametrize("stop", ["x", ["x"], ["x", "y", "z", "w"]])
def test_stop(stop: Any) -> None:
    assert parse_chat(ASK | {"stop": stop}).options.stop == tuple(stop)
