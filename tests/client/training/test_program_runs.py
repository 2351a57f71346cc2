"""Programs end: when a stop is asked for, also by a signal while the main thread computes; when they take too long; and when the runtime gives up."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from heron_client.training.program_runs import GRACE_SECONDS, ProgramRuns
from heron_common.errors import Interrupted, ProgramError
from heron_common.exit_codes import ExitCode, exit_code_of
from heron_common.process.clock import ManualClock
from heron_common.protocol.program_check import check_program
from tests.harness.polling import eventually


def graph_of(*nodes: onnx.NodeProto, **constants: Any) -> bytes:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", *ends, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    data: bytes = model.SerializeToString()
    check_program(data)
    return data


def long_program(products: int = 2000, size: int = 1000) -> bytes:
    """Nothing but listed operators, which together take minutes."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(products)]
    nodes += [helper.make_node("ReduceMax", [f"m{products}"], ["top"], keepdims=0), helper.make_node("Reshape", ["top", "one"], ["y"])]
    return graph_of(*nodes, shape=np.array([size, size]), one=np.array([1]))


class Loaded:
    """A program over buffers of one number, loaded as a client loads it but for its size."""

    def __init__(self, data: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.kept = [np.zeros(1, np.float32) for _ in "xy"]
        self.binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(self.kept[0]))
        self.binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(self.kept[1]))

    def run(self, runs: ProgramRuns) -> None:
        runs.run(self.session, self.binding, "the loss program")


@pytest.fixture(scope="module")
def endless() -> Loaded:
    return Loaded(long_program())


def error_of(program: Loaded, runs: ProgramRuns, meanwhile: Any) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            program.run(runs)
        except Exception as exc:
            caught.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive(), "the program is over before anything was asked"
    meanwhile()
    thread.join(20)
    assert not thread.is_alive(), "the program goes on"
    return caught[0] if caught else None


def test_a_stop_ends_a_program_that_runs_and_lets_no_other_begin(endless: Loaded) -> None:
    runs = ProgramRuns()
    assert isinstance(error_of(endless, runs, runs.stop), Interrupted)
    with pytest.raises(Interrupted):
        endless.run(runs)


def test_a_program_that_takes_too_long_is_ended_with_a_sentence_and_code_6(endless: Loaded) -> None:
    clock = ManualClock()
    runs = ProgramRuns(clock, longest_seconds=60)

    def wait_and_look() -> None:
        clock.advance(59)
        runs.look()
        clock.advance(2)
        runs.look()

    error = error_of(endless, runs, wait_and_look)
    assert isinstance(error, ProgramError)
    assert "the loss program was ended after 60 s for a single micro-batch" in str(error)
    assert exit_code_of(error) is ExitCode.PROGRAM


@pytest.mark.parametrize(("stopped", "code"), [(True, ExitCode.FORCED), (False, ExitCode.PROGRAM)])
def test_an_operator_that_does_not_end_is_left_with_the_process(stopped: bool, code: ExitCode) -> None:
    clock, codes = ManualClock(), list[int]()
    runs = ProgramRuns(clock, 60, codes.append)
    with runs.timed():
        clock.advance(61)
        runs.stop() if stopped else runs.look()
        clock.advance(GRACE_SECONDS - 1)
        runs.look()
        assert codes == []
        clock.advance(2)
        runs.look()
    assert codes == [code]
    clock.advance(1000)
    runs.look()
    assert codes == [code]


def test_what_the_runtime_cannot_compute_is_a_sentence_and_code_6() -> None:
    # The place is known when the program runs, and it is none of the table's two.
    nodes = (helper.make_node("Cast", ["x"], ["place"], to=TensorProto.INT64), helper.make_node("Gather", ["table", "place"], ["y"]))
    program = Loaded(graph_of(*nodes, table=np.ones(2, np.float32)))
    program.kept[0][0] = 7
    with pytest.raises(
        ProgramError, match=r"the loss program cannot be run by onnxruntime .* indices element out of data bounds"
    ) as caught:
        program.run(ProgramRuns())
    assert exit_code_of(caught.value) is ExitCode.PROGRAM


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_whose_main_thread_runs_a_program(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "long.onnx").write_bytes(long_program())
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from heron_client.training.program_runs import ProgramRuns\n"
        "from heron_common.errors import Interrupted\n"
        "from heron_common.process.signals import stop_on_signals\n"
        "from tests.client.training.test_program_runs import Loaded\n"
        "program, runs, stop = Loaded(Path(sys.argv[1]).read_bytes()), ProgramRuns(), threading.Event()\n"
        "with stop_on_signals(stop), runs.watched(stop):\n"
        "    print('running', flush=True)\n"
        "    try:\n"
        "        program.run(runs)\n"
        "    except Interrupted:\n"
        "        sys.exit(0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "long.onnx")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(number)
        try:
            eventually(lambda: process.poll() is not None, 15, "the end of the process")
        finally:
            process.kill()
    assert process.returncode == 0
