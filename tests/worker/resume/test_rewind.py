"""A stage that says it can go back really can, to any position; one that says not refuses.

What a slot keeps beside its pages is dropped, and an earlier position is computed again in the same
blocks: that is what a new epoch does. `pytest -m families` asks every family and runner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from beside import load

from lamella_contract.errors import EngineError
from lamella_worker.batch import Segment, StepBatch

FAMILIES = Path(__file__).parent.parent / "families"
FEW = ("llama", "gemma2", "ministral", "gemma3n_text", "deepseek_v3", "deepseek_v4", "inkling_text",
       "minimax", "qwen3_next", "glm_moe_dsa")  # fmt: skip
LENGTH = 37  # windows are 8
TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


tiny, law = load(FAMILIES / "tiny.py"), load(FAMILIES / "law.py")


def step(runner: Any, ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Logits after row ``end`` - 1, having computed [start, end) of slot 0."""
    blocks = law.tables()[1][: -(-end // law.BLOCK)]
    batch = StepBatch((Segment(0, start, end - start, blocks, True),), law.BLOCK)
    logits: torch.Tensor = runner.step(batch, {"token_ids": ids[start:end]})["logits"][0]
    return logits


def check(family: str, folder: Path) -> None:
    torch.set_num_threads(1)
    config = tiny.tiny_config(family)
    tiny.save_model(config, tiny.tiny_model(config), folder)
    ids = torch.randint(3, tiny.VOCAB - 1, (LENGTH,), generator=torch.Generator().manual_seed(7))
    case = law.Case(family, folder, config, (ids, ids), (), TOLERANCE)
    for kind in case.runners:
        (runner,) = law.build_stages(case, (0,), kind)
        step(runner, ids, 0, 16)
        step(runner, ids, 16, LENGTH - 1)
        wanted = step(runner, ids, LENGTH - 1, LENGTH)
        for back in (LENGTH - 1, LENGTH - 4, 20, 7, 3):
            runner.release(0)
            if getattr(runner, "state_kinds", None):
                with pytest.raises(EngineError, match="its state stands at 0"):
                    step(runner, ids, back, LENGTH)
                continue
            found = step(runner, ids, back, LENGTH)
            assert float((found - wanted).abs().max()) < TOLERANCE, (kind, back)


@pytest.mark.parametrize("family", FEW)
def test_a_family_goes_back(family: str, tmp_path: Path) -> None:
    check(family, tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("family", sorted(set(tiny.families()) - set(FEW)))
def test_every_family_goes_back(family: str, tmp_path: Path) -> None:
    check(family, tmp_path)
