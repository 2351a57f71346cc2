"""`heron cuts`: where a model can be cut, and what each cut costs a client and the wire; counted from shapes, nothing is compiled or timed."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heron_common.exit_codes import ExitCode

if TYPE_CHECKING:
    from heron_server.models.survey import Survey

BASE_BYTES = 67_000_000
"""Peak resident memory of a client process that trains next to nothing: Python, numpy, ONNX Runtime, gRPC and their imports."""

WEIGHT_COPIES = 4.5
"""A step holds the weights and their perturbation, 2 copies; a round's weights come in and go out as bytes beside them. Fitted, with BASE_BYTES and
ACTIVATION_COPIES, to clients of `heron` with 0.08 to 2.9 million weights at micro-batch 1, which peaked at 70, 78, 78, 85 and 124 MB: within 4 MB of each."""

ACTIVATION_COPIES = 2
"""ONNX Runtime holds the two largest neighbouring activations of one sample, and scratch space of about as much for convolutions."""

NAME_WIDTH = 32

LINE_WIDTH = 96


@dataclass(frozen=True)
class CutCost:
    """What one place costs.

    Attributes:
        activations: shape of one sample's activations at the cut.
        front_weights, head_weights: numbers that the client holds.
        forward_flops: of one sample through the front, a multiply-add as two.
        activation_bytes: the two largest neighbouring activations of one sample in front and head.
        by_batch: the model normalises by whole batches, so that a client holds those of every sample of a batch.

    """

    place: str
    activations: tuple[int, ...]
    front_weights: int
    head_weights: int
    forward_flops: int
    activation_bytes: int
    by_batch: bool = False

    @property
    def wire_bytes(self) -> int:
        """Bytes of one sample's activations as float32."""
        bytes_ = 4
        for size in self.activations:
            bytes_ *= size
        return bytes_

    @property
    def peak_bytes(self) -> int:
        """An estimate of a zeroth-order client's peak memory with micro-batches of one sample: base process + weights + activations, see the constants.

        Left out: data that the client keeps in memory, and kernels that keep more of a library's pages (the same client took 20 MB more on one machine).
        """
        weights = 4 * (self.front_weights + self.head_weights)
        return BASE_BYTES + int(WEIGHT_COPIES * weights) + ACTIVATION_COPIES * self.activation_bytes


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("cuts", help="list the places where a model can be cut, with what each costs a client and the wire")
    parser.add_argument("--model", default="resnet", metavar="TEXT", help="resnet, or python:MODULE:CALLABLE (default: resnet)")
    parser.add_argument("--model-options", default="", metavar="TEXT", help="options of the model, like 'depth=50 stem=imagenet'")
    parser.add_argument("--data-spec", required=True, metavar="TEXT", help="what data look like, as heron-server takes it, like 3x32x32:10")
    parser.set_defaults(run=run_cuts)


def run_cuts(options: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        ConfigurationError: there is no such model, or it cannot be traced.

    """
    # torch takes seconds to import; the other verbs should not wait for it.
    from heron_common.data.sources import parse_specification
    from heron_server.models.registry import parse_model_options
    from heron_server.models.survey import survey

    found = survey(options.model, parse_model_options(options.model_options), parse_specification(options.data_spec))
    print("\n".join(report(options.model, options.data_spec, found)))
    return ExitCode.OK


def costs(found: Survey) -> list[CutCost]:
    """Count what each place costs, on tensors without values."""
    from torch._subclasses import FakeTensorMode

    from heron_common.tensors import num_parameters
    from heron_server.programs.cost import client_cost

    rows = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for place in found.places:
            model = found.client_side(place)
            spec = model.to_spec()
            front, both = client_cost(model, with_head=False), client_cost(model, with_head=True)
            head_weights = num_parameters(spec.auxiliary_head)
            by_batch = bool(spec.statistics)
            rows.append(
                CutCost(place, spec.cut.shape, front.num_parameters, head_weights, front.forward_flops, both.activation_bytes, by_batch)
            )
    return rows


def report(model: str, data: str, found: Survey) -> list[str]:
    """Return the lines to print."""
    refused = sum(reason.count for reason in found.refused)
    lines = [f"{model} on {data}: {len(found.places)} place{'' if len(found.places) == 1 else 's'} to cut"]
    if found.places:
        rows: list[tuple[str, ...]] = [("--cut", "activations", "bytes/sample", "front weights", "FLOPs/sample", "client peak")]
        counted = costs(found)
        rows += [_row(cost) for cost in counted]
        lines += ["", *_aligned(rows), "", *_FOOTER, *(_BY_BATCH if any(cost.by_batch for cost in counted) else ())]
    if found.refused:
        lines += ["", f"Not at {refused} other submodules:"]
        width = max(len(str(reason.count)) for reason in found.refused)
        lines += [f"  {reason.count:>{width}}  {reason.reason}, e.g. {reason.example}" for reason in found.refused]
    for name, reason in found.kept_whole.items():
        lines += textwrap.wrap(f"{name} stays whole because it {reason}", LINE_WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


_FOOTER = (
    "bytes/sample   activations that an upload carries, as float32; int8 takes a quarter",
    "FLOPs/sample   one forward pass through the front; a zeroth-order step takes two or more",
    "client peak    estimate for a zeroth-order client with micro-batches of 1, within about 10 %:",
    f"               {BASE_BYTES // 10**6} MB for the process + {WEIGHT_COPIES} x bytes of all weights of front and head",
    f"               + {ACTIVATION_COPIES} x bytes of the two largest neighbouring activations",
)


_BY_BATCH = (
    "               normalised by whole batches, all samples of a batch are held at once:",
    "               the last term times the batch size",
)


def _row(cost: CutCost) -> tuple[str, ...]:
    name = cost.place if len(cost.place) <= NAME_WIDTH else "..." + cost.place[3 - NAME_WIDTH :]
    shape = "x".join(map(str, cost.activations))
    return name, shape, f"{cost.wire_bytes:,}", f"{cost.front_weights:,}", _short(cost.forward_flops), f"{cost.peak_bytes / 1e6:,.0f} MB"


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]
