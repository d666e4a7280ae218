"""`lamella bench`: how fast an endpoint answers under a number of clients.

Knows the OpenAI API and a clock. The words: TTFT, time to the first token; TPOT, time per output
token after the first, one figure per request; ITL, each gap between two pieces of a stream;
throughput, output tokens of all requests over the wall time of the level.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lamella import client
from lamella.bench_client import Address, Sample, Tape, read, record
from lamella.errors import EndpointError

# fmt: off
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "world",
    "life", "hand", "part", "child", "eye", "place", "work", "week",
    "case", "point", "company", "number", "group", "problem", "fact", "home",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Load:
    """What each request asks for; `requests` per level, sent by `concurrency` clients without a
    pause."""

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Level:
    """The figures of one level of concurrency. Milliseconds, medians and 99th percentiles."""

    concurrency: int
    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    wall_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    tpot_ms_p50: float
    tpot_ms_p99: float
    itl_ms_p50: float
    itl_ms_p99: float
    first_error: str = ""
    possible_tokens_per_s: float = 0.0
    """What the stages' own step times allow; a Lamella gateway tells, 0.0 elsewhere."""

    @property
    def decode_tokens_per_s(self) -> float:
        """What all clients get while all are being answered."""
        return 1e3 * self.concurrency / self.tpot_ms_p50 if self.tpot_ms_p50 > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON object."""
        return asdict(self)


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between closest ranks; 0.0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summarize(load: Load, samples: list[Sample], wall_s: float) -> Level:
    """The figures of one level."""
    good = [sample for sample in samples if not sample.error and sample.piece_times_s]
    ttft = [1e3 * sample.piece_times_s[0] for sample in good]
    tpot = [
        1e3 * (sample.piece_times_s[-1] - sample.piece_times_s[0]) / (sample.completion_tokens - 1)
        for sample in good
        if sample.completion_tokens > 1
    ]
    itl = [
        1e3 * (later - earlier)
        for sample in good
        for earlier, later in zip(sample.piece_times_s, sample.piece_times_s[1:], strict=False)
    ]
    completion_tokens = sum(sample.completion_tokens for sample in good)
    return Level(
        concurrency=load.concurrency,
        requests=len(samples),
        failures=len(samples) - len(good),
        prompt_tokens=sum(sample.prompt_tokens for sample in good),
        completion_tokens=completion_tokens,
        wall_s=wall_s,
        output_tokens_per_s=completion_tokens / wall_s if wall_s > 0 else 0.0,
        requests_per_s=len(good) / wall_s if wall_s > 0 else 0.0,
        ttft_ms_p50=percentile(ttft, 50),
        ttft_ms_p99=percentile(ttft, 99),
        tpot_ms_p50=percentile(tpot, 50),
        tpot_ms_p99=percentile(tpot, 99),
        itl_ms_p50=percentile(itl, 50),
        itl_ms_p99=percentile(itl, 99),
        first_error=next((sample.error for sample in samples if sample.error), ""),
    )


def prompt(characters: int, seed: int) -> str:
    """Common words, cut to so many characters; different for each seed so that no prefix cache
    helps."""
    choose = random.Random(seed)
    text = choose.choice(_WORDS)
    while len(text) < characters:
        text += " " + choose.choice(_WORDS)
    return text[: max(characters, 1)]


@dataclass(frozen=True, slots=True)
class Asking:
    """How this endpoint wants to be asked, as found out before the clock starts."""

    address: Address
    model: str
    chat: bool = False
    ignore_eos: bool = True
    usage: bool = True
    characters_per_token: float = 4.0

    def body(self, load: Load, seed: int) -> dict[str, Any]:
        """A streamed, greedy request of so many tokens."""
        text = prompt(round(load.input_tokens * self.characters_per_token), seed)
        asked = {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        return {
            "model": self.model,
            **asked,
            "max_tokens": load.output_tokens,
            "temperature": 0,
            "stream": True,
            **({"stream_options": {"include_usage": True}} if self.usage else {}),
            **({"ignore_eos": True} if self.ignore_eos else {}),
        }

    async def record(self, load: Load, seed: int, tape: Tape) -> Tape:
        """One request; what comes is written onto the tape and read later."""
        path = "/v1/chat/completions" if self.chat else "/v1/completions"
        await record(self.address, path, self.body(load, seed), tape)
        return tape


async def find_out(asking: Asking, load: Load, seed: int) -> Asking:
    """Tries until one request is answered: servers differ in what they know beyond the API.

    Raises EndpointError with what the endpoint said to the plainest request.
    """
    warm_up = replace(load, output_tokens=2)
    sample = Sample()
    for usage, ignore_eos in ((True, True), (True, False), (False, False)):
        tried = replace(asking, usage=usage, ignore_eos=ignore_eos)
        sample = read(await tried.record(warm_up, seed, Tape()))
        if not sample.error:
            return await _sized(tried, warm_up, sample, seed)
    raise EndpointError(sample.error)


async def _sized(asking: Asking, load: Load, sample: Sample, seed: int) -> Asking:
    """With prompts of as many tokens as asked: tokenizers differ, and the usage tells."""
    if not sample.prompt_tokens:
        return asking
    longer = replace(load, input_tokens=2 * load.input_tokens)
    twice = read(await asking.record(longer, seed, Tape()))
    more = twice.prompt_tokens - sample.prompt_tokens  # what a template adds falls out
    if twice.error or more <= 0:
        return asking
    per_token = load.input_tokens * asking.characters_per_token / more
    fixed = max(2 * sample.prompt_tokens - twice.prompt_tokens, 0)
    wanted = max(load.input_tokens - fixed, 1)
    return replace(asking, characters_per_token=per_token * wanted / load.input_tokens)


async def run_level(asking: Asking, load: Load, seed: int) -> Level:
    """One level: `load.concurrency` clients share `load.requests` requests."""
    queue = iter(range(load.requests))
    tapes: list[Tape] = []

    async def work() -> None:
        for index in queue:
            tapes.append(await asking.record(load, seed + index, Tape()))

    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(work())
    wall_s = time.perf_counter() - start_s
    return summarize(load, [read(tape) for tape in tapes], wall_s)


def first_model(url: str, api_key: str) -> str:
    """The first model that the endpoint lists. Raises EndpointError."""
    import httpx

    with httpx.Client(timeout=client.timeout(), headers=client.headers(api_key)) as http:
        return client.model_name(http, url)


async def run(
    url: str, api_key: str, loads: list[Load], *, chat: bool = False, seed: int = 1
) -> tuple[str, list[Level]]:
    """All levels, one after the other: the model's name and the figures. Raises EndpointError."""
    model = first_model(url, api_key)
    asking = Asking(Address.of(url, api_key), model, chat)
    levels = []
    for index, load in enumerate(loads):
        first_seed = seed + 10_000 * (index + 1)
        found = await find_out(asking, load, first_seed - 1)
        level = await run_level(found, load, first_seed)
        ceiling = possible(gateway_status(url, api_key), load.concurrency)
        levels.append(replace(level, possible_tokens_per_s=ceiling))
    return model, levels


def gateway_status(url: str, api_key: str) -> dict[str, Any]:
    """/status of a Lamella gateway; {} from anything else."""
    import httpx

    try:
        answer = httpx.get(f"{url}/status", headers=client.headers(api_key), timeout=5.0)
        document = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def possible(status: Mapping[str, Any], concurrency: int) -> float:
    """Tokens per second that the pipelines' step times allow with so many requests shared among
    them; 0.0 when it is not known. Between two numbers of requests it is taken for linear."""
    found = [each.get("roofline") for each in status.get("pipelines", ()) if each.get("ready")]
    known = [{int(p["requests"]): float(p["tokens_per_s"]) for p in line} for line in found if line]
    if not known:
        return 0.0
    share = max(concurrency / len(known), 1.0)
    return sum(_between(points, share) for points in known)


def _between(points: Mapping[int, float], at: float) -> float:
    """Linear between the points; 0.0 beyond the last, where nothing was measured."""
    below = max((x for x in points if x <= at), default=None)
    above = min((x for x in points if x >= at), default=None)
    if below is None or above is None:
        return 0.0
    if below == above:
        return points[below]
    part = (at - below) / (above - below)
    return points[below] + part * (points[above] - points[below])


COLUMNS = (
    "clients", "requests", "failed", "tokens in", "tokens out", "tok/s", "TTFT ms", "p99",
    "TPOT ms", "p99 ", "ITL ms", "p99  ", "possible",
)  # fmt: skip


def row(level: Level) -> tuple[str, ...]:
    """One row of the table, under COLUMNS."""
    return (
        str(level.concurrency),
        str(level.requests),
        str(level.failures),
        str(level.prompt_tokens),
        str(level.completion_tokens),
        f"{level.output_tokens_per_s:.1f}",
        f"{level.ttft_ms_p50:.0f}",
        f"{level.ttft_ms_p99:.0f}",
        f"{level.tpot_ms_p50:.2f}",
        f"{level.tpot_ms_p99:.2f}",
        f"{level.itl_ms_p50:.2f}",
        f"{level.itl_ms_p99:.2f}",
        _of_possible(level),
    )


def _of_possible(level: Level) -> str:
    """The ceiling, and how much of it the decoding reached."""
    if not level.possible_tokens_per_s:
        return "-"
    share = level.decode_tokens_per_s / level.possible_tokens_per_s
    return f"{level.possible_tokens_per_s:.0f} tok/s ({share:.0%})"
