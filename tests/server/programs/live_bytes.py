"""The bytes that a program's temporaries take, by the order in which ONNX Runtime really runs it."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
"""Operations whose output is their input's buffer."""

_BYTES = {"float": 4, "int64": 8, "int32": 4, "bool": 1}
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def peak_live_bytes(program: bytes, directory: Path) -> int:
    """Return the most bytes of temporaries that are needed at once: each from the operation that makes it to the last that reads it or a view of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(directory / "profile")
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: np.zeros(value.shape, _TYPES[value.type]) for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    graph = onnx.load(directory / "optimised.onnx").graph
    return _peak(graph, [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")])


def _peak(graph: Any, events: list[dict[str, Any]]) -> int:
    nodes = {node.name: node for node in graph.node}
    order = [(nodes[event["name"].removesuffix("_kernel_time")], event["args"]["output_type_shape"]) for event in events]
    buffers: dict[str, str] = {}
    for node, _ in order:
        if node.op_type in _VIEWS:
            buffers[node.output[0]] = buffers.get(node.input[0], node.input[0])
    last = {buffers.get(name, name): step for step, (node, _) in enumerate(order) for name in node.input}
    # The caller's own: ONNX Runtime writes outputs into buffers that it is given.
    ends = {value.name for value in graph.output}
    live: dict[str, int] = {}
    peak = 0
    for step, (node, shapes) in enumerate(order):
        for name, shape in zip([name for name in node.output if name], shapes, strict=True):
            ((kind, sizes),) = shape.items()
            if name not in ends and name not in buffers:
                live[name] = prod(sizes) * _BYTES[kind]
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > step}
    return peak
