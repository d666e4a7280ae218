"""Makes a Hugging Face folder out of a GGUF file: ``python -m lamella_worker.convert GGUF [OUT]``.

Knows nothing of stages or serving; transformers reads the GGUF and dequantizes it. Runs once per
file, before a pipeline starts, because slices are read from safetensors. The folder appears by a
rename, so it is either absent or whole. The last line on standard output is the folder's path.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamella_checkpoint import gguf
from lamella_checkpoint.errors import DiskFull
from lamella_contract import names
from lamella_contract.errors import CorruptModel, ModelNotFound, UnsupportedFamily

log = logging.getLogger(__name__)


def convert(source: Path, out_dir: Path, *, dtype: str = "float32") -> Path:
    """Write the model in the GGUF file ``source`` as the Hugging Face folder ``out_dir``.

    Weights are dequantized in float32 and then cast to ``dtype``. A finished conversion of the
    same content and dtype is kept as it is. Takes memory for the whole model in float32. Raises
    `ModelNotFound`, `CorruptModel`, `UnsupportedFamily` or `DiskFull`; then ``out_dir`` is absent.
    """
    if dtype not in names.DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, want one of {', '.join(names.DTYPES)}")
    found = gguf.find_gguf(source)
    if found is None:
        raise ModelNotFound(f"{source} is not a GGUF file and holds none")
    digest = gguf.content_hash(found)
    if gguf.is_converted(out_dir, digest, dtype):
        log.info("already converted", extra={"folder": str(out_dir)})
        return out_dir
    if out_dir.exists():
        raise FileExistsError(f"{out_dir} exists and is no conversion of {found.name} to {dtype}")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    _check_room(found, out_dir.parent)
    work = Path(tempfile.mkdtemp(dir=out_dir.parent, prefix=f".{out_dir.name}."))
    try:
        _write(found, work, dtype, digest)
        return _publish(work, out_dir, digest, dtype)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no room left under {out_dir.parent} while converting") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_room(source: Path, folder: Path) -> None:
    """Refuse early what cannot fit: a dequantized model is never smaller than its GGUF."""
    need_bytes, free_bytes = source.stat().st_size, shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise DiskFull(
            f"{folder} has {free_bytes} bytes free and {source.name} needs at least {need_bytes}"
        )


def _write(source: Path, folder: Path, dtype: str, digest: str) -> None:
    """Fill ``folder`` with config, weights, tokenizer and, last, the marker."""
    started = time.monotonic()
    import torch
    import transformers

    log.info("reading %s", source.name, extra={"bytes": source.stat().st_size})
    model = _load(source, torch.float32)
    # A model that still believes itself quantized saves a config that no loader wants.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("dequantized", extra={"parameters": parameters, "s": _since(started)})
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    log.info("weights written", extra={"s": _since(started)})
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(source.parent), gguf_file=source.name
    )
    tokenizer.save_pretrained(folder)
    marker = {
        "source": source.name,
        "source_sha256": digest,
        "dtype": dtype,
        "transformers": transformers.__version__,
    }
    (folder / gguf.MARKER_FILE).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    log.info("tokenizer written", extra={"s": _since(started)})


def _load(source: Path, dtype: Any) -> Any:
    """The model in the GGUF, dequantized, on the CPU."""
    import transformers

    options: dict[str, Any] = {"gguf_file": source.name, "dtype": dtype}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(str(source.parent), **options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # transformers' reader raises struct.error, IndexError, ...
        unsupported = isinstance(error, NotImplementedError) or "not supported" in str(error)
        kind = UnsupportedFamily if unsupported else CorruptModel
        raise kind(
            f"{source.name} cannot be read as GGUF: {type(error).__name__}: {error}"
        ) from error


def _publish(work: Path, out_dir: Path, digest: str, dtype: str) -> Path:
    """Rename the finished folder into place; a twin that was faster wins."""
    # Both temporary folders and safetensors files are made for one user only.
    work.chmod(0o755)
    for path in work.iterdir():
        path.chmod(0o644)
    try:
        os.rename(work, out_dir)
    except OSError:
        if not gguf.is_converted(out_dir, digest, dtype):
            raise
    return out_dir


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when the folder is there, 1 with one line on standard error when not."""
    parser = argparse.ArgumentParser(prog="python -m lamella_worker.convert", description=__doc__)
    parser.add_argument("gguf", type=Path, help="a GGUF file, or a folder that holds one")
    parser.add_argument("out_dir", type=Path, nargs="?", help="default: under --cache-dir")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "lamella")
    parser.add_argument("--dtype", default="float32", choices=names.DTYPES)
    options = parser.parse_args(arguments)
    # transformers draws bars of its own, thousands of lines where nobody looks at a terminal.
    os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        source = gguf.find_gguf(options.gguf)
        if source is None:
            raise ModelNotFound(f"{options.gguf} is not a GGUF file and holds none")
        out_dir = options.out_dir or gguf.converted_folder(source, options.cache_dir, options.dtype)
        folder = convert(source, out_dir, dtype=options.dtype)
    except (ModelNotFound, CorruptModel, UnsupportedFamily, DiskFull, FileExistsError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
