"""From the cells of `make bench-accuracy` to the table and the plots; every sentence in it follows from the numbers."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from accuracy_cells import BATCH_SIZE, CLIENTS, FRONTS, LAST_ROUNDS, LOCAL_STEPS, PARTITIONS, Cell, passes_per_sample, trains_by_differences

from heron_common.presets import PRESETS

Rows = dict[str, list[dict[str, Any]]]
"""The finished cells of one table by preset."""


def write_report(directory: Path, cells: list[Cell], found: dict[str, dict[str, Any]], memory: dict[str, int]) -> None:
    """Write accuracy.md and a plot for every table that has at least one finished cell."""
    lines = _introduction()
    for front in FRONTS:
        for partition in PARTITIONS:
            wanted = [cell for cell in cells if (cell.front.name, cell.partition) == (front.name, partition)]
            rows = {name: [found[cell.key] for cell in wanted if cell.preset == name and cell.key in found] for name in PRESETS}
            rows = {name: results for name, results in rows.items() if results}
            if rows:
                image = f"accuracy-{front.name}-{partition.replace(':', '-')}.png"
                lines += _table(front.name, partition, rows, memory) + _verdicts(rows) + ["", f"![{front.name}, {partition}]({image})", ""]
                _plot(directory / image, f"{front.name} front, {partition}", rows)
    (directory / "accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _introduction() -> list[str]:
    costs = ", ".join(f"{name} {passes_per_sample(name):g}" for name in PRESETS)
    return [
        "# Every preset at equal client passes",
        "",
        f"Written by `make bench-accuracy` (Fashion-MNIST, {CLIENTS} clients, {LOCAL_STEPS} steps a round, batch {BATCH_SIZE}; simulations with the real client and",
        f"server code; default options of every preset, none tuned for a front). Score: test accuracy on 10,000 images, mean of the last {LAST_ROUNDS} rounds; then mean and",
        "standard deviation over seeds.",
        "",
        "Equal passes: a client's cost is counted in forward passes of one sample through its part of the model, a backward pass counting as two. A step costs a sample:",
        f"{costs}. Each preset runs for as many rounds as the budget of its table allows, so cheap ones get more rounds, and the server more steps:",
        "that is what a device with a fixed budget of compute would see. sflv1 and sflv2 run the front twice because, to stay within the same memory, they keep no activations",
        "while they wait for lambda.",
        "",
        "Client memory: VmHWM of a fresh `heron-client` process, imports and gRPC included, training the same plan over loopback; all presets run in micro-batches,",
        "so `cse-fsl` here is the equal-memory control. Uplink and downlink: payload of all clients over the run.",
        "",
    ]


def _table(front: str, partition: str, rows: Rows, memory: dict[str, int]) -> list[str]:
    sample = next(iter(rows.values()))[0]
    lines = [
        f"## {front} front, {partition}",
        "",
        f"{sample['client_model_weights']:,} weights, {_product(sample['cut']):,} floats a sample at the cut.",
        "",
        "| preset | forward only | accuracy % | seeds | rounds | passes, millions | uplink MB | downlink MB | client peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, results in sorted(rows.items(), key=lambda item: -_mean(item[1])):
        first = results[0]
        peak = memory.get(f"{front}/{name}")
        lines.append(
            f"| {name} | {'yes' if trains_by_differences(name) else 'no'} | {100 * _mean(results):.2f} ± {100 * _spread(results):.2f} | {len(results)} "
            f"| {first['rounds']} | {first['forward_equivalents'] / 1e6:.2f} | {first['uplink_bytes'] / 1e6:.1f} | {first['downlink_bytes'] / 1e6:.1f} "
            f"| {'-' if peak is None else f'{peak / 1e6:.0f}'} |"
        )
    return [*lines, ""]


def _verdicts(rows: Rows) -> list[str]:
    """Say where heron stands against the control, the equal-memory rival and the paper, win or lose."""
    if not {"heron", "frozen", "cse-fsl", "heron-paper"} <= set(rows):
        return []
    heron, frozen, exact, paper = (rows[name] for name in ("heron", "frozen", "cse-fsl", "heron-paper"))
    lines = [f"- `heron` against `frozen`: {_compare(heron, frozen)}.", f"- `heron` against `cse-fsl`: {_compare(heron, exact)}."]
    lines.append(f"- `heron` against `heron-paper`: {_compare(heron, paper)}.")
    gap = _mean(exact) - _mean(frozen)
    if gap > _spread(exact) + _spread(frozen):
        lines.append(
            f"- Of the gap between `frozen` and `cse-fsl` ({100 * gap:.2f} points) `heron` closes {(_mean(heron) - _mean(frozen)) / gap:.0%}."
        )
    else:
        lines.append(
            "- There is no gap between `frozen` and `cse-fsl` beyond the spread at this budget: this front does not need training, so no credit is due to anybody."
        )
    return lines


def _compare(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    difference, spread = _mean(one) - _mean(other), _spread(one) + _spread(other)
    verdict = "no difference beyond the spread" if abs(difference) <= spread else ("better" if difference > 0 else "**worse**")
    return f"{100 * difference:+.2f} points (spreads together {100 * spread:.2f}): {verdict}"


def _plot(path: Path, title: str, rows: Rows) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), sharey=True)
    for index, (name, results) in enumerate(rows.items()):
        length = min(len(result["accuracies"]) for result in results)
        curve = [100 * statistics.fmean(result["accuracies"][i] for result in results) for i in range(length)]
        style = {
            "color": f"C{index}",
            "linewidth": 2.2 if name.startswith("heron") else 1.2,
            "linestyle": "--" if name == "frozen" else "-",
        }
        for axis, total in zip(
            axes, (results[0]["rounds"], results[0]["uplink_bytes"] / 1e6, results[0]["forward_equivalents"] / 1e6), strict=True
        ):
            axis.plot([total * (i + 1) / length for i in range(length)], curve, label=name, **style)
    for axis, label in zip(axes, ("rounds", "uplink, MB", "client forward-equivalents, millions of samples"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].set_ylim(bottom=max(0.0, min(100 * min(r["accuracy"] for results in rows.values() for r in results) - 8, 70.0)))
    axes[2].legend(fontsize=8, loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _mean(results: list[dict[str, Any]]) -> float:
    return statistics.fmean(result["accuracy"] for result in results)


def _spread(results: list[dict[str, Any]]) -> float:
    return statistics.stdev(result["accuracy"] for result in results) if len(results) > 1 else 0.0


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
