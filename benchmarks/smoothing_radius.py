"""How true finite differences are by smoothing radius, on every model that ships; writes docs/results/smoothing-radius.md. Run by `make bench-radius`.

For each model and preset: the median over 32 directions of |finite difference - derivative| / |derivative| (the gate of design section 5), and the radius that
a server chooses by itself. Nothing is trained and nothing is timed.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from heron_common.process.quiet_libraries import quiet_libraries

quiet_libraries()

import torch  # noqa: E402

from heron_common.algorithm.presets import preset  # noqa: E402
from heron_common.data.sources import SPECIFICATIONS  # noqa: E402
from heron_server.models.registry import build_model, parse_model_options  # noqa: E402
from heron_server.programs.difference_gate import DIFFERENCE_TOLERANCE, difference_error  # noqa: E402
from heron_server.programs.export import ProgramCache  # noqa: E402
from heron_server.programs.publish import complete_algorithm, fit_smoothing_radius, scales_of  # noqa: E402
from heron_server.publication import default_program_cache  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RADII = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
PRESETS = ("heron", "heron-paper", "heron-server-loss", "ho-sfl")
MODELS = (
    ("cnn, 126 weights (the demo's)", "cnn", "front_widths=4,2 front_strides=1,2", "digits"),
    ("cnn, 126 weights", "cnn", "front_widths=4,2 front_strides=2,2 back_widths=32", "fashion-mnist"),
    ("cnn, 2,544 weights", "cnn", "front_widths=16,16 front_strides=2,2 back_widths=32", "fashion-mnist"),
    ("cnn, 23,520 weights", "cnn", "front_widths=16,32,32,32 front_strides=2,2,1,1 back_widths=32", "fashion-mnist"),
    ("resnet, 4,884 weights", "resnet", "width=16", "cifar-10"),
)


def rows_of(name: str, family: str, options: str, data: str) -> list[str]:
    """Return a model's rows of the table."""
    specification = SPECIFICATIONS[data]
    model = build_model(family, parse_model_options(options), data=specification, seed=0)
    cache = ProgramCache(default_program_cache())
    rows = []
    for preset_name in PRESETS:
        algorithm, _ = complete_algorithm(preset(preset_name), model)
        plan = algorithm.plan
        program = cache.program(model, plan.judged_program, micro_batch=plan.micro_batch, directions=plan.directions_per_run)
        scales = scales_of(model, algorithm)
        errors = [
            difference_error(model, dataclasses.replace(plan, smoothing_radius=radius), program=program, scales=scales, seed=0)
            for radius in RADII
        ]
        chosen = fit_smoothing_radius(algorithm, model, cache=cache, seed=0).plan.smoothing_radius
        cells = " | ".join(f"**{100 * e:.1f}**" if e > DIFFERENCE_TOLERANCE else f"{100 * e:.1f}" for e in errors)
        rows.append(f"| {name} | {preset_name} | {plan.difference.value} | {cells} | {chosen:g} |")
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Write the table."""
    torch.set_num_threads(1)
    heads = " | ".join(f"{radius:g}" for radius in RADII)
    lines = [
        "# Finite differences by smoothing radius",
        "",
        "Written by `make bench-radius`: median relative error in per cent of the finite difference along 32 directions against autograd's derivative,",
        f"on random samples and the weights that a run starts from. Bold: beyond the {100 * DIFFERENCE_TOLERANCE:.0f} % at which a server refuses.",
        "Large radii leave the tangent, small ones drown in the rounding of float32. The last column is what a server takes when nothing is given: the preset's",
        "radius, halved until it passes.",
        "",
        f"| model | preset | difference | {heads} | chosen |",
        "|---|---|---|" + "---|" * (len(RADII) + 1),
    ]
    for model in MODELS:
        lines += rows_of(*model)
    path = ROOT / "docs" / "results" / "smoothing-radius.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
