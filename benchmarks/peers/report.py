"""The table and the plots of a comparison. Knows what was measured; measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.measure import Cell, Results
from benchmarks.peers.systems import SYSTEMS, System

OURS = "lamella-2"


def table(results: Results, levels: list[int], systems: tuple[System, ...] = SYSTEMS) -> str:
    """Markdown: tokens per second (time per token) at each level, then CPU, then why some are not
    there."""
    head = ["system", *(f"{level} at once" for level in levels), "CPU us per token", "failed"]
    rows = [head, ["---"] * len(head)]
    for system in systems:
        if system.key in results.missing:
            rows.append([system.title, *("-" for _ in levels), "-", "not measured"])
            continue
        cells = [results.cell(system.key, level) for level in levels]
        if any(cells):
            rows.append([system.title, *map(_figures, cells), _cpu(cells), _failed(cells)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "tok/s (time per output token, ms; time to the first, ms). CPU of all processes "
              "of the system, at the highest level."]  # fmt: skip
    lines += ["", *ratios(results, levels, systems), "", *limits(results, levels)]
    for key, reason in results.missing.items():
        lines += ["", f"{_title(key, systems)} is not measured: {reason}"]
    notes = [f"{system.title}: {system.note}." for system in systems if system.note]
    return "\n".join([*lines, "", *notes])


def limits(results: Results, levels: list[int]) -> list[str]:
    """Ours against the stages' own step times, and against the bandwidth of one core."""
    lines = []
    for key in ("lamella-1", OURS):
        cells = [(level, results.cell(key, level)) for level in levels]
        told = [
            f"{level}: {cell.reached:.0%} of {cell.possible:.0f} tok/s"
            for level, cell in cells
            if cell and cell.possible
        ]
        if told:
            lines.append(f"Decoding reaches, {_title(key, SYSTEMS)}: {'; '.join(told)}.")
    one, two = results.cell("lamella-1", 1), results.cell(OURS, 1)
    if one and two:
        lines.append(f"Two stages less one, per token at 1: {two.tpot_ms - one.tpot_ms:.2f} ms.")
    if results.floors and two:
        floor = min(results.floors, key=lambda each: each.step_ms)
        lines.append(
            f"Floor of one stream: {floor.step_bytes / 1e6:.0f} MB per step at "
            f"{floor.read_bytes_per_s / 1e9:.1f} GB/s = {floor.step_ms:.1f} ms; two stages need "
            f"{two.tpot_ms / floor.step_ms:.2f} times that."
        )
    return lines


def ratios(results: Results, levels: list[int], systems: tuple[System, ...]) -> list[str]:
    """Ours on two stages over each peer, level by level."""
    head = ["Lamella, 2 stages, over", *(f"{level} at once" for level in levels)]
    rows = [head, ["---"] * len(head)]
    for system in systems:
        if system.key == OURS:
            continue
        quotients = []
        for level in levels:
            ours, theirs = results.cell(OURS, level), results.cell(system.key, level)
            there = ours and theirs and theirs.tokens_per_s > 0
            quotients.append(f"{ours.tokens_per_s / theirs.tokens_per_s:.2f}" if there else "-")
        if any(quotient != "-" for quotient in quotients):
            rows.append([system.title, *quotients])
    return ["| " + " | ".join(row) + " |" for row in rows] if len(rows) > 2 else []


def _figures(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.tokens_per_s:.1f} ({cell.tpot_ms:.1f}; {cell.ttft_ms:.0f})"


def _cpu(cells: list[Cell | None]) -> str:
    last = next((cell for cell in reversed(cells) if cell), None)
    if last is None:
        return "-"
    servers = f", gateway and supervisor {last.server_us:.0f}" if last.server_us else ""
    return f"{last.cpu_us:.0f}{servers}"


def _failed(cells: list[Cell | None]) -> str:
    there = [cell for cell in cells if cell]
    failed, short = sum(cell.failures for cell in there), sum(cell.short for cell in there)
    text = f"{failed} of {sum(cell.requests for cell in there)}"
    return f"{text}, {short} tokens short" if short else text


def _title(key: str, systems: tuple[System, ...]) -> str:
    return next((system.title for system in systems if system.key == key), key)


def plot(results: Results, levels: list[int], path: Path) -> None:
    """Tokens per second over requests at once, one line per system, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for system in SYSTEMS:
        cells = [(level, results.cell(system.key, level)) for level in levels]
        there = [(level, cell) for level, cell in cells if cell and cell.tokens_per_s > 0]
        if not there:
            continue
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "label": system.title}
        style["linewidth"] = 2.4 if system.key.startswith("lamella") else 1.0
        style["linestyle"] = "-" if system.stages == 2 else "--"
        at = [level for level, _ in there]
        left.plot(at, [cell.tokens_per_s for _, cell in there], **style)
        right.plot(at, [cell.tpot_ms for _, cell in there], **style)
    for axes, label in ((left, "output tokens per second"), (right, "ms per output token")):
        axes.set(xscale="log", yscale="log", xlabel="requests at once", ylabel=label)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    left.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
