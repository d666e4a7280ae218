"""Every family's pages take what the plan counts per token, under every runner that may serve it.

As in test_law.py a few families stand for all; `pytest -m families` runs the rest.
"""

from pathlib import Path

import pytest
import torch
from beside import load
from storages import live_bytes
from transformers import AutoConfig

from lamella_checkpoint.caches import layer_caches
from lamella_checkpoint.cuts import num_layers, text_config
from lamella_worker.fast.runner import supports
from lamella_worker.hf.family_table import PACKED
from lamella_worker.model import build_runner
from lamella_worker.readers import folder_reader

HERE = Path(__file__).parent
BLOCKS, BLOCK = 1024, 16

tiny = load(HERE / "tiny.py")

# Windows in all layers and in some, latent attention, states beside pages, keys that other layers
# share, heads that differ between layers, and one head for all queries.
FEW = (
    "deepseek_v3", "gemma3n_text", "gemma4_text", "gpt_bigcode", "llama", "mistral", "qwen3_next",
)  # fmt: skip

# An indexer's or compressed keys grow with each sequence beside the pages; pages hold the rest.
BESIDE = (
    "axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4",
    "inkling_text",
)  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def takes_what_is_planned(family: str, folder: Path) -> None:
    torch.set_num_threads(1)
    made = tiny.tiny_config(family)
    tiny.save_model(made, tiny.tiny_model(made), folder)
    config = AutoConfig.from_pretrained(folder)
    text = text_config(config)
    layers = num_layers(text)
    caches = layer_caches(text, layers, torch.float32.itemsize)
    wanted = BLOCKS * BLOCK * sum(cache.kv_bytes_per_token for cache in caches)
    kinds = {"fast": supports(text), "packed": text.model_type in PACKED, "sequential": True}
    for kind in (kind for kind, may in kinds.items() if may):
        runner = build_runner(
            config, 0, layers, folder_reader(folder), dtype=torch.float32, runner=kind
        )
        held = []
        for blocks in (1, 1 + BLOCKS):  # what does not grow with the pages is in both
            runner.setup_caches(
                num_blocks=blocks, block_size=BLOCK, max_sequences=4, max_model_len=256
            )
            held.append(live_bytes())
        least = 0 if family in BESIDE else wanted
        assert least <= held[1] - held[0] <= 1.05 * wanted, kind
        del runner


@pytest.mark.parametrize("family", FEW)
def test_a_familys_pages(family: str, tmp_path: Path) -> None:
    takes_what_is_planned(family, tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("family", sorted(set(tiny.families()) - set(FEW)))
def test_every_familys_pages(family: str, tmp_path: Path) -> None:
    takes_what_is_planned(family, tmp_path)
