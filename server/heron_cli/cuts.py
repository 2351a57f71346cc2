"""`heron cuts`: where a model can be cut, and what each cut costs a client and the wire; counted from shapes, nothing is compiled or timed."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from heron_common.exit_codes import ExitCode
from heron_common.terminal.output import report_progress, say

if TYPE_CHECKING:
    from heron_common.specification.data_specification import DataSpecification
    from heron_server.models.survey import Survey
    from heron_server.programs.client_memory import ClientMemory

NAME_WIDTH = 32

LINE_WIDTH = 96


@dataclass(frozen=True)
class CutCost:
    """What one place costs.

    Attributes:
        activations: shape of one sample's activations at the cut.
        front_weights, head_weights: numbers that the client trains.
        frozen_bytes: frozen weights of the front as they are stored.
        forward_flops: of one sample through the front, a multiply-add as two.
        memory: what a client holds.
        by_batch: the model normalises by whole batches, so that a client holds the activations of every sample of a batch.

    """

    place: str
    activations: tuple[int, ...]
    _: KW_ONLY
    front_weights: int
    head_weights: int
    frozen_bytes: int
    forward_flops: int
    memory: ClientMemory
    by_batch: bool = False

    @property
    def wire_bytes(self) -> int:
        """Bytes of one sample's activations as float32."""
        return 4 * math.prod(self.activations)

    @property
    def peak_bytes(self) -> int:
        """An estimate of a zeroth-order client's peak memory with micro-batches of one sample, see `ClientMemory`."""
        return self.memory.peak_bytes


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("cuts", help="list the places where a model can be cut, with what each costs a client and the wire")
    parser.add_argument(
        "--model", default="resnet", metavar="TEXT", help="resnet, python:MODULE:CALLABLE or hf:FOLDER_OR_NAME (default: resnet)"
    )
    parser.add_argument("--model-options", default="", metavar="TEXT", help="options of the model, like 'depth=50 stem=imagenet'")
    parser.add_argument(
        "--data-spec",
        required=True,
        metavar="TEXT",
        help="what data look like, as heron-server takes it, like 3x32x32:10 or text:128:next-token",
    )
    parser.add_argument(
        "--eval-data",
        metavar="TEXT",
        help="data source whose samples a model of your own is tried on, as heron-server takes it; normal numbers or random tokens by default",
    )
    parser.add_argument(
        "--leakage",
        metavar="SOURCE",
        help="data source like digits:train; at each cut its samples are attacked as `heron leakage` does, which takes minutes",
    )
    parser.set_defaults(run=run_cuts)


def run_cuts(options: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        ConfigurationError: there is no such model, or it cannot be traced.
        DataError: the data to try it on are not as --data-spec says.

    """
    # torch takes seconds to import; the other verbs should not wait for it.
    from heron_common.data.sources import open_source, parse_specification
    from heron_server.models.probes import probes_for
    from heron_server.models.registry import parse_model_options
    from heron_server.models.survey import survey
    from heron_server.models.user.user_code import PREFIX

    data = parse_specification(options.data_spec)
    # Whoever makes a namespace of their own need not know of this option.
    samples: str | None = getattr(options, "eval_data", None)
    model_options, probes = parse_model_options(options.model_options), None
    if samples is not None and options.model.startswith(PREFIX):
        probes = probes_for(open_source(samples), data, family=options.model, options=model_options)
    found = survey(options.model, model_options, data=data, probes=probes)
    leaks = _leaks(options, data, model_options) if getattr(options, "leakage", None) else {}
    say(*report(options.model, options.data_spec, found, leaks))
    return ExitCode.OK


def _leaks(options: argparse.Namespace, data: DataSpecification, model_options: dict[str, Any]) -> dict[str, float]:
    """Return for each place the share that the strongest attack recovers."""
    from heron_common.data.sources import open_source
    from heron_server.leakage.defence import Defence
    from heron_server.leakage.sweep import Assault, measure_places

    assault = Assault(open_source(options.leakage), Defence())
    found = measure_places(
        options.model,
        model_options,
        data=data,
        places=(),
        assault=assault,
        seed=0,
        progress=lambda words: report_progress(f"attacking {words}"),
    )
    return {one.cut: one.recovered for one in found}


def costs(found: Survey) -> list[CutCost]:
    """Count what each place costs, on tensors without values."""
    from torch._subclasses import FakeTensorMode

    from heron_common.numerics.tensors import num_parameters
    from heron_server.programs.client_memory import client_memory, frozen_front_bytes
    from heron_server.programs.cost import client_cost

    rows = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for place in found.places:
            model = found.client_side(place)
            spec = model.to_spec()
            front = client_cost(model, with_head=False)
            head_weights, frozen = num_parameters(spec.auxiliary_head), frozen_front_bytes(model)
            memory, by_batch = client_memory(model), bool(spec.statistics)
            rows.append(
                CutCost(
                    place,
                    spec.cut.shape,
                    front_weights=front.num_parameters,
                    head_weights=head_weights,
                    frozen_bytes=frozen,
                    forward_flops=front.forward_flops,
                    memory=memory,
                    by_batch=by_batch,
                )
            )
    return rows


def report(model: str, data: str, found: Survey, leaks: Mapping[str, float] | None = None) -> list[str]:
    """Return the lines to print; `leaks` holds of each place that was attacked the share that came back."""
    leaks = leaks or {}
    refused = sum(reason.count for reason in found.refused)
    lines = [f"{model} on {data}: {len(found.places)} place{'' if len(found.places) == 1 else 's'} to cut"]
    if found.places:
        counted = costs(found)
        has_base = any(cost.memory.base_bytes for cost in counted)
        titles = (
            "--cut",
            "activations",
            "bytes/sample",
            "front weights",
            *(_BASE_TITLES if has_base else ()),
            "FLOPs/sample",
            "client peak",
            *(("recovered",) if leaks else ()),
        )
        rows = [_row(cost, has_base) + ((f"{leaks[cost.place]:.0%}",) if leaks else ()) for cost in counted]
        lines += ["", *_aligned([titles, *rows]), "", *_footer(counted, has_base), *(_RECOVERED if leaks else ())]
    if found.refused:
        lines += ["", f"Not at {refused} other submodules:"]
        width = max(len(str(reason.count)) for reason in found.refused)
        lines += [f"  {reason.count:>{width}}  {reason.reason}, e.g. {reason.example}" for reason in found.refused]
    for name, reason in found.kept_whole.items():
        lines += textwrap.wrap(f"{name} stays whole because it {reason}", LINE_WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


_BASE_TITLES = ("frozen front", "mapped")


def _footer(counted: list[CutCost], has_base: bool) -> list[str]:
    from heron_server.programs import client_memory as memory

    tokens = counted[0].memory.tokens
    process = memory.PROCESS_BYTES + (memory.TOKENS_BYTES if tokens else 0)
    copies = memory.TOKENS_ACTIVATION_COPIES if tokens else memory.ACTIVATION_COPIES
    lines = [
        "bytes/sample   activations that an upload carries, as float32; int8 takes a quarter",
        *(_BASE_LINES if has_base else ()),
        "FLOPs/sample   one forward pass through the front; a zeroth-order step takes two or more",
        f"client peak    estimate for a zeroth-order client with micro-batches of 1, within about {15 if has_base else 10} %:",
        f"               {process // 10**6} MB for the process + {memory.WEIGHT_COPIES} x bytes of all trained weights of front and head",
        f"               + {copies:g} x bytes of the two largest neighbouring activations",
    ]
    if any(cost.memory.beyond_bytes for cost in counted):
        lines.append(f"               + {memory.BEYOND_COPIES} x bytes by which an operation such as attention exceeds the mean of these")
    if has_base:
        lines.append("               + the mapped file")
    if any(cost.memory.widened_bytes for cost in counted):
        widened = f"{memory.WIDENED_BYTES // 10**6} MB + {memory.WIDENED_COPIES} x bytes of the largest of its matrices as float32"
        lines.append(f"               + {widened}")
    return [*lines, *(_BY_BATCH if any(cost.by_batch for cost in counted) else ())]


_BASE_LINES = (
    "front weights  those that are trained; where there are none, only preset frozen runs",
    "frozen front   the front's frozen weights as devices store them (transformers: option base)",
    "mapped         the whole file of frozen weights that a device fetches once, the head's included",
)

_RECOVERED = (
    "recovered      share of the mean sample's error (of text: of tokens) that the strongest attack",
    "               of `heron leakage` takes away, with the model's first weights and no defence",
)

_BY_BATCH = (
    "               normalised by whole batches, all samples of a batch are held at once:",
    "               the term of activations times the batch size",
)


def _row(cost: CutCost, has_base: bool) -> tuple[str, ...]:
    name = cost.place if len(cost.place) <= NAME_WIDTH else "..." + cost.place[3 - NAME_WIDTH :]
    shape = "x".join(map(str, cost.activations))
    base = (_megabytes(cost.frozen_bytes), _megabytes(cost.memory.base_bytes)) if has_base else ()
    flops, peak = _short(cost.forward_flops), f"{cost.peak_bytes / 1e6:,.0f} MB"
    return name, shape, f"{cost.wire_bytes:,}", f"{cost.front_weights:,}", *base, flops, peak


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


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
