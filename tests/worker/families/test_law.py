"""Every family, in 1, 2 and 3 stages, under every runner that may serve it, equals Hugging Face.

`pytest -m families tests/worker/families` runs all of them (minutes); without the mark a few run
that stand for the rest.
"""

from pathlib import Path

import pytest
import torch
from beside import load

HERE = Path(__file__).parent


tiny, law = load(HERE / "tiny.py"), load(HERE / "law.py")

# A dense one, one with windows and soft-caps, dynamic NTK, long-rope, experts, latent attention,
# linear attention, shared keys and values with per-layer inputs, and learned positions.
FEW = (
    "llama", "gemma2", "qwen2", "phi3", "qwen3_moe", "deepseek_v3", "qwen3_next", "gemma3n_text",
    "opt",
)  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def obeys(family: str, folder: Path) -> None:
    torch.set_num_threads(1)
    case = law.make_case(tiny, family, folder)
    for runner in case.runners:
        verdict = law.judge(case, runner)
        assert verdict.holds, verdict
        # Logits of order one, or the tolerance would say nothing.
        assert verdict.scale > 0.4, verdict


@pytest.mark.parametrize("family", FEW)
def test_a_family_equals_unsplit(family: str, tmp_path: Path) -> None:
    obeys(family, tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("family", sorted(set(tiny.families()) - set(FEW)))
def test_every_family_equals_unsplit(family: str, tmp_path: Path) -> None:
    obeys(family, tmp_path)
