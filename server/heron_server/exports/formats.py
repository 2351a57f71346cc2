"""Whole models as files of torch.export, ONNX and safetensors, written and opened again with those libraries alone."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heron_common.errors import ProgramError
from heron_server.exports.place import NOTE, note_beside
from heron_server.exports.whole import Samples, Whole, has_named_outputs

LARGEST_PROTOBUF_BYTES = 2_000_000_000
"""Weights beyond stand in a file beside the ONNX file: protobuf ends at two gibibytes."""

Run = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
"""Inputs -> outputs of what was written."""


def write_torch(whole: Whole, note: dict[str, Any], samples: Samples, path: Path) -> None:
    """Write a program of torch.export, batch size and length of sequences free.

    Raises:
        ProgramError: torch.export cannot capture the model.

    """
    with _exporting("torch"):
        program = torch.export.export(whole.traceable, samples.inputs, dynamic_shapes=_dynamic_shapes(whole))
        for node in program.graph.nodes:
            # Paths of the machine that the model's code is on.
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path, extra_files={NOTE: json.dumps(note)})


def open_torch(path: Path) -> Run:
    """Open what `write_torch` wrote."""
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


def write_onnx(whole: Whole, note: dict[str, Any], samples: Samples, path: Path) -> None:
    """Write a model of standard ONNX operators with its weights inside, or in a file beside it if they are too large.

    Raises:
        ProgramError: the model has operations that ONNX does not.

    """
    output = "logits" if note["task"] != "regression" else "outputs"
    with _exporting("onnx"):
        exported = torch.onnx.export(
            whole.traceable,
            samples.inputs,
            dynamo=True,
            verbose=False,
            input_names=list(whole.inputs),
            output_names=[output],
            dynamic_shapes=_dynamic_shapes(whole),
        )
        assert exported is not None
        for node in exported.model.graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        exported.model.metadata_props["heron"] = json.dumps(note)
        exported.save(path, external_data=_num_bytes(whole.traceable) > LARGEST_PROTOBUF_BYTES)


def open_onnx(path: Path) -> Run:
    """Open what `write_onnx` wrote, in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: torch.from_numpy(session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})[0])


def write_safetensors(whole: Whole, note: dict[str, Any], samples: Samples, path: Path) -> None:
    """Write every tensor of the state under the name that the original has it by, and beside it the note."""
    from safetensors.torch import save_file

    # Copies: names that share a tensor, as a tied unembedding does, are all written, so that a strict load finds each.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in whole.module.state_dict().items()}
    save_file(state, path, {"format": "pt", "heron": json.dumps(note)})
    note_beside(path).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def open_safetensors(whole: Whole, path: Path) -> Run:
    """Load what `write_safetensors` wrote into the module that it came from, which is emptied before."""
    from safetensors.torch import load_file

    with torch.no_grad():
        for value in whole.module.state_dict().values():
            value.zero_()
    whole.module.load_state_dict(load_file(path))
    if not has_named_outputs(whole):
        return lambda inputs: whole.traceable(*inputs)
    return lambda inputs: whole.module(**dict(zip(whole.inputs, inputs, strict=True))).logits


def _dynamic_shapes(whole: Whole) -> tuple[dict[int, Any], ...]:
    """Name the sizes that are free: of the batch, and of what has no size in a sample."""
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=whole.longest)
    return tuple({0: batch} | {axis: sequence for axis, size in enumerate(shape, 1) if size is None} for shape in whole.shapes)


def _num_bytes(module: nn.Module) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@contextmanager
def _exporting(format_name: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one sentence; keep it quiet meanwhile."""
    # It warns of torchvision's absence at every export, which is no news to anybody.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused path of torch's encoder layers is one operation that no other library has.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporters warn of their own insides.
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as exc:
        cause: BaseException = exc
        while cause.__cause__ is not None:
            cause = cause.__cause__
        message = str(cause).strip()
        reason = f"{type(cause).__name__}: {message.splitlines()[0][:300] if message else 'no message'}"
        raise ProgramError(
            f"the model cannot be written as --format {format_name} ({reason}): make its forward exportable, or use --format safetensors"
        ) from exc
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
