"""From the cells of `make bench-accuracy` to the tables and the plots; every sentence in them follows from the numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accuracy_cells import (
    BATCH_SIZE,
    CLIENTS,
    FRONTS,
    LAST_ROUNDS,
    LOCAL_STEPS,
    PARTITIONS,
    Cell,
    passes_per_sample,
    rounds_at_equal_passes,
    score_after,
    trains_by_differences,
)

from heron_common.algorithm.presets import PRESETS

Results = list[dict[str, Any]]
"""The finished cells of one preset in one table, a seed each."""

Score = Callable[[dict[str, Any]], float]


def at_equal_steps(result: dict[str, Any]) -> float:
    """Read a curve after as many rounds as every other preset."""
    return score_after(result["accuracies"], result["compared_rounds"])


def at_equal_passes(result: dict[str, Any]) -> float:
    """Read a curve where the clients have spent as many passes as heron's."""
    return score_after(result["accuracies"], rounds_at_equal_passes(result["preset"], result["compared_rounds"]))


def write_report(directory: Path, cells: list[Cell], found: dict[str, dict[str, Any]], memory: dict[str, int]) -> None:
    """Write accuracy.md and a plot for every table that has at least one finished cell."""
    lines = _introduction()
    for front in FRONTS:
        for partition in PARTITIONS:
            wanted = [cell for cell in cells if (cell.front.name, cell.partition) == (front.name, partition)]
            rows = {name: [found[c.key] for c in wanted if c.preset == name and c.key in found] for name in PRESETS}
            rows = {name: results for name, results in rows.items() if results}
            if rows:
                image = f"accuracy-{front.name}-{partition.replace(':', '-')}.png"
                lines += _table(front.name, partition, rows, memory) + _verdicts(rows) + ["", f"![{front.name}, {partition}]({image})", ""]
                _plot(directory / image, f"{front.name} front, {partition}", rows)
    (directory / "accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _introduction() -> list[str]:
    costs = ", ".join(f"{name} {passes_per_sample(name):g}" for name in PRESETS)
    return [
        "# Every preset, at equal steps and at equal client passes",
        "",
        f"Written by `make bench-accuracy` (Fashion-MNIST, {CLIENTS} clients, {LOCAL_STEPS} steps a round, batch {BATCH_SIZE}; simulations with the real client",
        "and server code; default options of every preset, none tuned for a front). Test accuracy in per cent on 10,000 images, mean of the last",
        f"{LAST_ROUNDS} rounds; then mean ± standard deviation over seeds. Runs are short: the numbers compare presets, they are not what a long run reaches.",
        "",
        "**Equal steps**: after as many rounds for all, so the server has taken as many steps on as many samples; this isolates what training the front is worth.",
        "**Equal passes**: where each preset's clients have spent the passes that `heron`'s have spent by then, a backward pass counting as two forward passes;",
        f"this is what a device with a fixed budget of compute sees. Passes a sample and step: {costs}. Cheap presets have had more rounds by then, and their server more",
        "steps; `sflv1` and `sflv2` run the front twice because, to stay within the same memory, they keep no activations while they wait for lambda. Rates that fall over a run",
        "have not fallen to their end where a curve is read before its end.",
        "",
        "Client memory: VmHWM of a fresh `heron-client` process, imports and gRPC included, training the same plan over loopback; all presets run in micro-batches,",
        "so `cse-fsl` here is the equal-memory control. Uplink and downlink: payload of all clients over the rounds of the equal-steps column.",
        "",
    ]


def _table(front: str, partition: str, rows: dict[str, Results], memory: dict[str, int]) -> list[str]:
    sample = next(iter(rows.values()))[0]
    lines = [
        f"## {front} front, {partition}",
        "",
        f"{sample['client_model_weights']:,} weights, {_product(sample['cut']):,} floats a sample at the cut; {sample['compared_rounds']} rounds at equal steps.",
        "",
        "| preset | forward only | equal steps | equal passes | after rounds | seeds | uplink MB | downlink MB | client peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, results in sorted(rows.items(), key=lambda item: -_mean(item[1], at_equal_steps)):
        first = results[0]
        share = first["compared_rounds"] / first["rounds"] / 1e6
        peak = memory.get(f"{front}/{name}")
        lines.append(
            f"| {name} | {'yes' if trains_by_differences(name) else 'no'} | {_figure(results, at_equal_steps)} | {_figure(results, at_equal_passes)} "
            f"| {rounds_at_equal_passes(name, first['compared_rounds'])} | {len(results)} | {first['uplink_bytes'] * share:.1f} "
            f"| {first['downlink_bytes'] * share:.1f} | {'-' if peak is None else f'{peak / 1e6:.0f}'} |"
        )
    return [*lines, ""]


def _verdicts(rows: dict[str, Results]) -> list[str]:
    """Say where heron stands against the control, the equal-memory rival and the paper, win or lose."""
    if not {"heron", "frozen", "cse-fsl", "heron-paper"} <= set(rows):
        return []
    lines = [
        f"- `heron` against `{other}`: {_compare(rows['heron'], rows[other], at_equal_steps)} at equal steps; "
        f"{_compare(rows['heron'], rows[other], at_equal_passes)} at equal passes."
        for other in ("frozen", "cse-fsl", "heron-paper")
    ]
    frozen, exact, heron = (_mean(rows[name], at_equal_steps) for name in ("frozen", "cse-fsl", "heron"))
    if exact - frozen > _spread(rows["cse-fsl"], at_equal_steps) + _spread(rows["frozen"], at_equal_steps):
        closed = (heron - frozen) / (exact - frozen)
        lines.append(
            f"- Of the gap between `frozen` and `cse-fsl` at equal steps ({100 * (exact - frozen):.2f} points) `heron` closes {closed:.0%}."
        )
    else:
        lines.append(
            "- At equal steps there is no gap between `frozen` and `cse-fsl` beyond the spread: so far this front needs no training, and nobody earns credit for it."
        )
    return lines


def _compare(one: Results, other: Results, score: Score) -> str:
    difference, spread = _mean(one, score) - _mean(other, score), _spread(one, score) + _spread(other, score)
    verdict = "no difference beyond the spread" if abs(difference) <= spread else ("better" if difference > 0 else "**worse**")
    return f"{100 * difference:+.2f} points ({verdict})"


def _plot(path: Path, title: str, rows: dict[str, Results]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), sharey=True)
    for index, (name, results) in enumerate(rows.items()):
        first = results[0]
        curve = [100 * statistics.fmean(result["accuracies"][i] for result in results) for i in range(first["rounds"])]
        style = {
            "color": f"C{index}",
            "linewidth": 2.2 if name.startswith("heron") else 1.2,
            "linestyle": "--" if name == "frozen" else "-",
        }
        totals = (first["rounds"], first["uplink_bytes"] / 1e6, first["forward_equivalents"] / 1e6)
        for axis, total in zip(axes, totals, strict=True):
            axis.plot([total * (i + 1) / first["rounds"] for i in range(first["rounds"])], curve, label=name, **style)
    for axis, label in zip(axes, ("rounds", "uplink, MB", "client forward-equivalents, millions of samples"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].set_ylim(bottom=max(0.0, min(100 * at_equal_steps(r) for results in rows.values() for r in results) - 12))
    axes[2].legend(fontsize=8, loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _figure(results: Results, score: Score) -> str:
    return f"{100 * _mean(results, score):.2f} ± {100 * _spread(results, score):.2f}"


def _mean(results: Results, score: Score) -> float:
    return statistics.fmean(score(result) for result in results)


def _spread(results: Results, score: Score) -> float:
    return statistics.stdev(score(result) for result in results) if len(results) > 1 else 0.0


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
