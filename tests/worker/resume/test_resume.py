"""Answers after every kind of disturbance equal the undisturbed ones, for each kind of state.

Real tiny models in float32, cut into stages, disturbed at random moments (the seed is in the test's
name): an epoch in which all keep what they hold, a stage that is replaced, a stage 0 that begins
anew, a step without memory. Requests are greedy, drawn with a seed, penalised, stopped by ids and
by length, and more than there is room for, so that some give way.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beside import load

from lamella_checkpoint.cuts import num_layers, text_config
from lamella_contract.wire import Sampling
from lamella_worker.scheduling.pressure import TRIES

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


line = load(HERE / "line.py")
tiny = load(HERE.parent / "families" / "tiny.py")

# What stands for each kind of state: where it is cut, whether each stage can go back.
FAMILIES: dict[str, tuple[tuple[int, ...], tuple[bool, ...]]] = {
    "llama": ((0, 2, 4), (True,) * 3),  # pages, hand-written layers
    "ministral": ((0, 2, 3), (True,) * 3),  # windows of 12 in every second layer
    "gemma3_text": ((0, 3), (True,) * 2),  # windows, packed rows
    "deepseek_v3": ((0, 2), (True,) * 2),  # latents
    "qwen3_next": ((0, 1, 3), (False,) * 3),  # convolution and recurrent state
    "minimax": ((0, 1, 2), (False,) * 3),  # linear attention, in a cache of its own
    "glm_moe_dsa": ((0, 3), (False,) * 2),  # keys of an indexer beside the pages
}
DISTURBANCES = ("rest", "replace", "stage 0", "memory", "all")
CASES = [
    (family, what)
    for family in FAMILIES
    for what in (DISTURBANCES if family in ("llama", "qwen3_next") else ("rest", "all"))
]


def requests() -> list[tuple[tuple[int, ...], Sampling]]:
    draw = random.Random(5)
    stops = tuple(range(3, tiny.VOCAB, 9))
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "max_tokens": 14},
        {"temperature": 0.9, "seed": 7, "top_k": 20, "max_tokens": 10},
        {"temperature": 0.0, "repetition_penalty": 1.4, "max_tokens": 16},
        {"temperature": 0.8, "seed": 8, "top_p": 0.9, "presence_penalty": 0.7, "max_tokens": 12},
        {"temperature": 0.0, "frequency_penalty": 0.9, "presence_penalty": 0.3, "max_tokens": 15},
        {"temperature": 1.1, "seed": 9, "stop_token_ids": stops, "max_tokens": 30},
        {"temperature": 0.7, "seed": 10, "repetition_penalty": 1.2, "max_tokens": 1},
    ]
    lengths = (40, 3, 17, 30, 9, 21, 5)
    alone = [
        (tuple(draw.randrange(3, tiny.VOCAB) for _ in range(n)), Sampling(**kind))
        for n, kind in zip(lengths, kinds, strict=True)
    ]
    # They get a slot when others have one no more, and begin as the first and the fourth of them.
    shared = (alone[0][0], alone[3][0])
    return alone + [
        ((*shared[n % 2][:length], 5 + n), replace(alone[n][1], max_tokens=12))
        for n, length in enumerate((40, 30, 23, 17, 36))
    ]


Answer = tuple[tuple[int, ...], str, str]


class Model:
    """A family's model on disk, and what it answers when nothing happens and all is computed."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = folder
        self.splits, self.rewindable = FAMILIES[family]
        config = tiny.tiny_config(family)
        tiny.save_model(config, tiny.tiny_model(config), folder)
        self.layers = num_layers(text_config(config))
        self.answers, _ = self.answer(lambda line, turn: None, 0, cold=True)

    def answer(
        self, disturb: Callable[[Any, int], None], seed: int, *, cold: bool = False
    ) -> tuple[list[Answer], Any]:
        pipeline = line.Line(self.folder, self.layers, self.splits, seed, cold=cold)
        try:
            found = tuple(stage.engine.rewindable for stage in pipeline.stages)
            assert found == self.rewindable
            for prompt, sampling in requests():
                pipeline.submit(prompt, sampling)
            pipeline.serve(disturb)
            return [client.answer for client in pipeline.clients], pipeline.counts
        finally:
            pipeline.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    made: dict[str, Model] = {}

    def make(family: str) -> Model:
        if family not in made:
            made[family] = Model(family, tmp_path_factory.mktemp(family))
        return made[family]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)  # steps without memory are told with their traces
    yield make
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def disturbance(what: str, seed: int) -> Callable[[Any, int], None]:
    """Something of this kind now and then, at moments that the seed says."""
    draw = random.Random(seed)

    def disturb(pipeline: Any, turn: int) -> None:
        if draw.random() > 0.03:
            return
        kind = draw.choice(DISTURBANCES[:-1]) if what == "all" else what
        k = draw.randrange(len(pipeline.stages))
        if kind == "rest":
            pipeline.epoch()
        elif kind == "replace":
            pipeline.replace(k)
        elif kind == "stage 0":
            pipeline.new_scheduler()
        elif pipeline.counts["exhausted"] < TRIES:  # one more and a request would fail, rightly
            pipeline.exhaust(k)

    return disturb


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_begin_with_what_others_left_equal_cold_ones(
    family: str, models: Callable[[str], Model]
) -> None:
    model = models(family)
    answers, counts = model.answer(lambda line, turn: None, 3)
    assert answers == model.answers
    assert (counts["found"] > 60) == all(model.rewindable)


@pytest.mark.parametrize(("family", "what"), CASES)
def test_answers_are_the_undisturbed_ones(
    family: str, what: str, models: Callable[[str], Model]
) -> None:
    model = models(family)
    assert {finish for _, finish, _ in model.answers} == {"length", "stop"}
    seed = 11
    answers, counts = model.answer(disturbance(what, seed), seed)
    assert answers == model.answers
    assert counts["exhausted"] + counts["epochs"] > 3, "nothing happened"
    assert (counts["found"] > 0) == all(model.rewindable)
    held_back = what == "rest" and any(model.rewindable)
    assert counts["held"] or not held_back, "an epoch kept nothing"
