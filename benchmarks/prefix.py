"""What a beginning that was computed before saves: time to first token, cold and found.

    python benchmarks/prefix.py [--model m768] [--folder DIR] [--tokens 1024] [--rounds 5]

Two stages pinned to a core each behind the real gateway. Each round has a beginning of its own, of
random ids: a request computes it, a second one with another end begins with a copy of it while the
first still decodes, a third takes it over when nobody has it, a fourth has its end only. Medians.
"""

import argparse
import http.client
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from serve_bench import Server, about, random_model, serving, wait_ready

OWN = 16  # tokens of each request behind the shared beginning
VOCABULARY = 30_000


class Stream:
    """One answer under way; `first_s` after it was asked for came its first token."""

    def __init__(self, server: Server, prompt: list[int], tokens: int) -> None:
        body = {
            "model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        head = {"Content-Type": "application/json"}
        began_s = time.perf_counter()
        self._connection.request("POST", "/v1/completions", json.dumps(body), head)
        self._answer = self._connection.getresponse()
        if self._answer.status != 200:
            raise SystemExit(f"HTTP {self._answer.status}: {self._answer.read()!r}")
        self._answer.readline()
        self.first_s = time.perf_counter() - began_s

    def end(self) -> int:
        """Tokens of the prompt that were there."""
        lines = [line for line in self._answer if line.startswith(b"data: {")]
        self._connection.close()
        usage = json.loads(lines[-1][6:])["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])


def measure(server: Server, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds and tokens found of each kind of request, by round."""
    draw = random.Random(1)
    samples: dict[str, list[tuple[float, int]]] = {
        "cold": [],
        "copied": [],
        "taken over": [],
        "none": [],
    }
    for _ in range(rounds + 1):
        beginning = [draw.randrange(5, VOCABULARY) for _ in range(tokens)]
        ends = [[draw.randrange(5, VOCABULARY) for _ in range(OWN)] for _ in samples]
        first = Stream(server, beginning + ends[0], 64)
        second = Stream(server, beginning + ends[1], 2)
        found = [first, second]
        cached = [first.end(), second.end()]
        for prompt in (beginning + ends[2], ends[3]):
            found.append(Stream(server, prompt, 2))
            cached.append(found[-1].end())
        for name, stream, count in zip(samples, found, cached, strict=True):
            samples[name].append((stream.first_s, count))
    return {name: each[1:] for name, each in samples.items()}  # the first round warms up


def report(model: str, tokens: int, samples: dict[str, Any]) -> str:
    """The table, with what it takes to measure it again."""
    lines = [f"{name}: {value}" for name, value in about().items()]
    lines += [
        f"model: {model}, bf16, 2 stages, prompts of {tokens} + {OWN} tokens",
        f"command: python benchmarks/prefix.py --model {model} --tokens {tokens}",
        "",
        f"{'beginning':<14}{'first token':>14}{'tokens found':>14}",
    ]
    for name, each in samples.items():
        first_ms = 1e3 * statistics.median(first_s for first_s, _ in each)
        found = statistics.median(count for _, count in each)
        lines.append(f"{name:<14}{first_ms:>11.1f} ms{found:>14.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with random_model(arguments.model, arguments.folder) as folder:
        words = ("--stages", "2", "--pin", "--max-model-len", str(2 * arguments.tokens))
        with serving(folder, *words) as server:
            wait_ready(server)
            samples = measure(server, arguments.tokens, arguments.rounds)
    print(report(arguments.model, arguments.tokens, samples))


if __name__ == "__main__":
    main()
