"""`lamella bench`: how fast an endpoint answers under a number of clients.

Knows the OpenAI API and a clock. The words: TTFT, time to the first token; TPOT, time per output
token after the first, one figure per request; ITL, each gap between two pieces of a stream;
throughput, output tokens of all requests over the wall time of the level.
"""

import asyncio
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from lamella import client
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
class Sample:
    """One request: seconds from its start to each piece of text, tokens in and out, and what went
    wrong."""

    piece_times_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


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


def prompt(tokens: int, seed: int) -> str:
    """About `tokens` tokens of common words, different for each seed so that no prefix cache
    helps."""
    choose = random.Random(seed)
    return " ".join(choose.choice(_WORDS) for _ in range(tokens))


async def request(
    http: httpx.AsyncClient, url: str, model: str, load: Load, seed: int, *, ignore_eos: bool = True
) -> Sample:
    """Sends one streamed completion and times its pieces; errors land in the sample."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt(load.input_tokens, seed),
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:
        body["ignore_eos"] = True
    start_s = time.perf_counter()
    times: list[float] = []
    prompt_tokens = completion_tokens = 0
    try:
        async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return Sample(error=client.error_text(response.status_code, response.text))
            async for piece in client.async_pieces(response.aiter_lines()):
                if piece.text:
                    times.append(time.perf_counter() - start_s)
                prompt_tokens = piece.prompt_tokens or prompt_tokens
                completion_tokens = piece.completion_tokens or completion_tokens
    except (httpx.HTTPError, EndpointError) as error:
        return Sample(error=str(error) or type(error).__name__)
    if not times:
        return Sample(error="the stream held no text")
    return Sample(tuple(times), prompt_tokens, completion_tokens or len(times))


async def run_level(http: httpx.AsyncClient, url: str, model: str, load: Load, seed: int) -> Level:
    """One level: `load.concurrency` clients share `load.requests` requests."""
    # Other servers may not know the extension; one request finds out before the clock starts.
    warm_up = Load(1, 1, load.input_tokens, 2)
    ignore_eos = not (await request(http, url, model, warm_up, seed - 1)).error
    queue = iter(range(load.requests))
    samples: list[Sample] = []

    async def work() -> None:
        for index in queue:
            samples.append(
                await request(http, url, model, load, seed + index, ignore_eos=ignore_eos)
            )

    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(work())
    return summarize(load, samples, time.perf_counter() - start_s)


async def run(url: str, api_key: str, loads: list[Load], seed: int = 1) -> tuple[str, list[Level]]:
    """All levels, one after the other: the model's name and the figures. Raises EndpointError."""
    with httpx.Client(timeout=client.timeout(), headers=client.headers(api_key)) as http:
        model = client.model_name(http, url)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        timeout=client.timeout(), headers=client.headers(api_key), limits=limits
    ) as http_async:
        levels = []
        for index, load in enumerate(loads):
            levels.append(
                await run_level(http_async, url, model, load, seed + 10_000 * (index + 1))
            )
        return model, levels


COLUMNS = (
    "clients", "requests", "failed", "tokens in", "tokens out", "tok/s", "TTFT ms", "p99",
    "TPOT ms", "p99 ", "ITL ms", "p99  ",
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
    )
