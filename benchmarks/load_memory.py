"""What loading a stage takes in memory, kept and at most, against what the plan says.

    python benchmarks/load_memory.py [FOLDER] [--dtype bfloat16]

Loads the whole model, its first and its second half, in bf16 and in int8, each in a process of its
own with the memory settings that stages have. Counted is what loading adds to a process that has
imported everything and tried its kernels; pages of caches and steps come on top, as planned.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from decode import restart_with_memory_settings

MB = 1e6


def resident_bytes() -> dict[str, int]:
    """VmRSS, VmHWM and RssAnon of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = (line.split() for line in lines)
    names = ("VmRSS:", "VmHWM:", "RssAnon:")
    return {words[0][:-1]: int(words[1]) * 1024 for words in found if words[0] in names}


def planned_bytes(folder: Path, cuts: list[int], first: int, stored: str, dtype: str) -> int:
    """Weights of the stage that begins at layer `first`."""
    from lamella_checkpoint.inspector import inspect
    from lamella_checkpoint.source import LocalSource
    from lamella_contract.plan import plan

    split = tuple(end - start for start, end in itertools.pairwise(cuts))
    profile = inspect(LocalSource(folder), dtype=dtype, stored=stored)
    (stage,) = [
        stage
        for stage in plan(profile, split=split, max_model_len=512, max_sequences=1).stages
        if stage.first_layer == first
    ]
    return stage.weight_bytes


def load(folder: Path, first: int, last: int, stored: str, dtype_name: str) -> None:
    """Load layers [first, last) here and print one row."""
    import torch
    from transformers import AutoConfig

    from lamella_worker.fast.int8 import Int8Linear
    from lamella_worker.fast.linear import make_linear
    from lamella_worker.model import build_runner
    from lamella_worker.readers import folder_reader

    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    config: Any = AutoConfig.from_pretrained(folder)
    cuts = sorted({0, first, last, config.num_hidden_layers})
    planned = planned_bytes(folder, cuts, first, stored, dtype_name)
    make: Any = Int8Linear if stored == "int8" else make_linear
    make(torch.zeros(64, 64, dtype=dtype))(torch.zeros(4, 64, dtype=dtype))
    reader = folder_reader(folder)
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    runner = build_runner(config, first, last, reader, dtype=dtype, quantization=stored)
    after = resident_bytes()
    kept = after["RssAnon"] - before["RssAnon"]
    most = after["VmHWM"] - before["VmRSS"]
    name = "int8" if stored == "int8" else dtype_name
    print(
        f"{name:9} layers {first:2} to {last - 1:2}: planned {planned / MB:5.0f} MB,"
        f" kept {kept / MB:5.0f} ({kept / planned - 1:+.1%}),"
        f" at most {most / MB:5.0f} ({most / planned - 1:+.1%})"
    )
    del runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    restart_with_memory_settings()
    if arguments.load:
        first, last, stored = arguments.load
        load(arguments.folder, int(first), int(last), stored, arguments.dtype)
        return
    from models import make_folder
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or make_folder("m768", Path(scratch) / "model")
        layers = AutoConfig.from_pretrained(folder).num_hidden_layers
        half = layers // 2
        for stored in ("none", "int8"):
            for first, last in ((0, layers), (0, half), (half, layers)):
                asked = ["--dtype", arguments.dtype, "--load", str(first), str(last), stored]
                subprocess.run([sys.executable, __file__, str(folder), *asked], check=True)


if __name__ == "__main__":
    main()
