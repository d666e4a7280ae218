"""The endpoint as the official client sees it, with a twin of stage 0 behind."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from gateway_lab import Lab, Served
from gateway_twin import Twin

from lamella_contract.wire import NO_SALT, Cancel, Sampling, Submit, TokenEvent

HELLO = "hello world, how are you?"
ASK: Any = [{"role": "user", "content": "the quick brown fox"}]


def client(served: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


def submitted(twin: Twin) -> Submit:
    return twin.of(Submit)[-1]


def test_a_chat_is_answered(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    with client(lab.serve(twin)) as api:
        answer = api.chat.completions.create(model="toy", messages=ASK)
    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    submit = submitted(twin)
    text = lab.tokenizer.decode(submit.ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nthe quick brown fox<|im_end|>\n<|im_start|>assistant\n"
    assert submit.prompt_len == len(submit.ids)
    assert submit.attempt == 1
    assert submit.sampling.max_tokens == 512 - len(submit.ids)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(submit.ids)
    assert answer.usage.completion_tokens == len(lab.ids(HELLO)) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tokens_of_the_prompt_that_were_there_are_told(lab: Lab, stream: bool) -> None:
    with client(lab.serve(lab.twin(HELLO, cached=4))) as api:
        if stream:
            options = {"include_usage": True}
            *_, last = api.chat.completions.create(
                model="toy", messages=ASK, stream=True, stream_options=options
            )
        else:
            last = api.chat.completions.create(model="toy", messages=ASK)
    assert last.usage.prompt_tokens_details.cached_tokens == 4


def test_a_cache_salt_keeps_what_was_computed_apart(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    with client(lab.serve(twin)) as api:
        for salt in (None, "tenant-1", "tenant-2", "tenant-1"):
            extra = {"cache_salt": salt}
            api.chat.completions.create(model="toy", messages=ASK, extra_body=extra)
    none, one, two, again = (got.salt for got in twin.of(Submit))
    assert none == NO_SALT
    assert one == again
    assert len({none, one, two}) == 3


def test_a_chat_is_streamed(lab: Lab) -> None:
    with client(lab.serve(lab.twin(HELLO))) as api:
        chunks = list(
            api.chat.completions.create(
                model="toy", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == HELLO
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(lab.ids(HELLO)) + 1
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("the lazy dog", id="text"),
        pytest.param(["the lazy dog"], id="list-of-one-text"),
        pytest.param([17, 18, 19], id="ids"),
        pytest.param([[17, 18, 19]], id="list-of-one-list-of-ids"),
    ],
)
def test_a_completion(lab: Lab, prompt: Any) -> None:
    twin = lab.twin(HELLO)
    with client(lab.serve(twin)) as api:
        answer = api.completions.create(model="toy", prompt=prompt, max_tokens=5)
        streamed = list(
            api.completions.create(model="toy", prompt=prompt, max_tokens=5, stream=True)
        )
    expected = lab.tokenizer.decode(lab.ids(HELLO)[:5])
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert "".join(c.choices[0].text for c in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == "length"
    first = prompt[0] if isinstance(prompt, list) and not isinstance(prompt[0], int) else prompt
    assert submitted(twin).ids == (lab.ids(first) if isinstance(first, str) else tuple(first))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_stop_string_ends_the_answer_and_the_work(lab: Lab, stream: bool) -> None:
    twin = lab.twin("hello world STOP and much that nobody wants " * 3)
    with client(lab.serve(twin)) as api:
        made: Any = api.chat.completions.create(
            model="toy", messages=ASK, stop=["never", "d ST"], stream=stream
        )
        if stream:
            chunks = list(made)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            text, finish = made.choices[0].message.content, made.choices[0].finish_reason
    assert (text, finish) == ("hello worl", "stop")
    twin.wait(lambda: twin.of(Cancel))
    assert twin.of(Cancel) == [Cancel(submitted(twin).request_id, 1)]


def test_every_parameter_reaches_stage_0(lab: Lab) -> None:
    twin = lab.twin()
    extra = {"top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5, "ignore_eos": True}
    with client(lab.serve(twin)) as api:
        api.chat.completions.create(
            model="toy",
            messages=ASK,
            max_completion_tokens=9,
            temperature=0.5,
            top_p=0.75,
            seed=-1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            n=1,
            user="someone",
            logprobs=False,
            response_format={"type": "text"},
            extra_body=extra,
        )
    assert submitted(twin).sampling == Sampling(
        temperature=0.5,
        top_p=0.75,
        top_k=7,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        seed=2**64 - 1,
        max_tokens=9,
        ignore_eos=True,
    )


def test_a_seed_is_minted_when_none_is_given(lab: Lab) -> None:
    twin = lab.twin()
    with client(lab.serve(twin)) as api:
        for _ in range(2):
            api.completions.create(model="toy", prompt="the")
    seeds = {submit.sampling.seed for submit in twin.of(Submit)}
    assert len(seeds) == 2


def test_many_at_once_are_not_mixed_up(lab: Lab) -> None:
    def echo(submit: Submit) -> tuple[tuple[int, ...], str]:
        return submit.ids * 3, "length"

    twin = lab.twin(batch=2)
    twin.set(answer=echo)
    served = lab.serve(twin)
    prompts = [f"the fox {i} jumps" for i in range(30)]

    async def ask(api: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await api.completions.create(
            model="toy", prompt=prompt, max_tokens=200, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as api:
            return await asyncio.gather(*(ask(api, prompt) for prompt in prompts))

    assert asyncio.run(ask_all()) == [prompt * 3 for prompt in prompts]
    assert served.live() == 0


def test_models(lab: Lab) -> None:
    with client(lab.serve(lab.twin())) as api:
        assert [model.id for model in api.models.list()] == ["toy"]
        assert api.models.retrieve("toy").id == "toy"
        with pytest.raises(openai.NotFoundError):
            api.models.retrieve("other")


def test_keys(lab: Lab) -> None:
    keys = lab.tmp / "keys"
    keys.write_text("# who may ask\nsecret-one\n\nsecret-two\n")
    served = lab.serve(lab.twin(), api_keys_file=str(keys))
    for key in ("secret-one", "secret-two"):
        with client(served, key) as api:
            assert [model.id for model in api.models.list()] == ["toy"]
    with client(served, "secret-on") as api:
        with pytest.raises(openai.AuthenticationError):
            api.models.list()
        with pytest.raises(openai.AuthenticationError):
            api.chat.completions.create(model="toy", messages=ASK)


def refusal(**fields: Any) -> TokenEvent:
    return TokenEvent(bytes(16), 0, 0, (), "error", **fields)


@pytest.mark.parametrize(
    ("event", "expected", "said"),
    [
        pytest.param(
            refusal(error="too much", error_kind="overloaded", retry_after_s=2.5),
            openai.RateLimitError,
            "too much",
            id="overloaded",
        ),
        pytest.param(
            refusal(error="9 tokens too many", error_kind="prompt_too_long"),
            openai.BadRequestError,
            "9 tokens too many",
            id="prompt-too-long",
        ),
        pytest.param(
            refusal(error="stage 1 died", error_kind="pipeline"),
            openai.InternalServerError,
            "stage 1 died",
            id="pipeline",
        ),
        pytest.param(
            refusal(error="no memory", error_kind="out_of_memory"),
            openai.InternalServerError,
            "no memory",
            id="out-of-memory",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_stage_0_refuses_has_its_status(
    lab: Lab, event: TokenEvent, expected: type[openai.APIStatusError], said: str, stream: bool
) -> None:
    served = lab.serve(lab.twin(refuse=event))
    with client(served) as api, pytest.raises(expected, match=said) as raised:
        api.chat.completions.create(model="toy", messages=ASK, stream=stream)
    if expected is openai.RateLimitError:
        assert raised.value.response.headers["retry-after"] == "3"
    assert served.live() == 0


def test_wrong_parameters_are_the_clients_exceptions(lab: Lab) -> None:
    with client(lab.serve(lab.twin())) as api:
        with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
            api.chat.completions.create(model="other", messages=ASK)
        with pytest.raises(openai.BadRequestError) as raised:
            api.chat.completions.create(model="toy", messages=ASK, n=2)
        assert raised.value.param == "n"
        with pytest.raises(openai.BadRequestError) as raised:
            api.chat.completions.create(model="toy", messages=ASK, logit_bias={"1": 5})
        assert raised.value.param == "logit_bias"
        with pytest.raises(openai.BadRequestError, match="a system message must be the first"):
            api.chat.completions.create(
                model="toy", messages=[*ASK, {"role": "system", "content": "late"}]
            )
        with pytest.raises(openai.BadRequestError, match="context is 512 tokens") as raised:
            api.completions.create(model="toy", prompt=[5] * 512)
        assert raised.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="has 500 and 13 for the answer"):
            api.completions.create(model="toy", prompt=[5] * 500, max_tokens=13)
