"""A run as an object: its rounds while it trains, and afterwards its history, curves, report, trained model and exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from heron_cli.python_api.curves import Curves
from heron_cli.python_api.display import line_of, table_of
from heron_cli.python_api.history import History
from heron_cli.python_api.training import Training
from heron_cli.report import read_summary, write_report
from heron_common.errors import ConfigurationError
from heron_common.files.plain_files import reading
from heron_common.terminal.argument_names import spoken_in_python
from heron_server.exports.delivery import deliver
from heron_server.exports.place import ExportFormat, suffix_of
from heron_server.exports.trained_model import TrainedModel, load_trained
from heron_server.exports.vouching import Vouched
from heron_server.exports.whole import whole_of
from heron_server.models.copies import copied
from heron_server.models.user.user_module import whole_state
from heron_server.summary import RoundRecord

Which = int | Literal["newest", "best"] | None
"""The checkpoint after so many rounds, the newest one now, or the best; None for the newest once the run has ended."""


class Run:
    """A run of `simulate`, `serve` or `open_run`. Iterating gives each round as it is finished; the run goes on meanwhile."""

    def __init__(
        self,
        directory: Path,
        *,
        model: nn.Module | str | None = None,
        training: Training | None = None,
        again: Callable[..., Run] | None = None,
        kept: object = None,
        address: str | None = None,
    ) -> None:
        """`again` goes on with the run with other arguments; `kept` is what has to live as long as the run's files. Made by `simulate` and the like."""
        self.directory = directory
        self.address = address
        """HOST:PORT that clients of `serve` reach; None for other runs."""
        self._model, self._training, self._again, self._kept = model, training, again, kept

    def __iter__(self) -> Iterator[RoundRecord]:
        """Yield each round that this run trains, from its first; ends with the run.

        Raises:
            HeronError: the run failed.

        """
        place = 0
        while self._training is not None:
            try:
                record = self._training.record(place)
            except KeyboardInterrupt:
                self.stop()
                raise
            if record is None:
                return
            yield record
            place += 1

    @property
    def is_training(self) -> bool:
        """Whether it goes on at present."""
        return self._training is not None and not self._training.has_ended

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` of the run says now."""
        return read_summary(self.directory / "summary.json")

    @property
    def ended_because(self) -> str | None:
        """Why the run is over; None while it goes on, and after it was stopped."""
        reason = self.summary.get("ended_because")
        return None if reason is None else str(reason)

    @property
    def history(self) -> History:
        """Every finished round, those before it was resumed included."""
        if self._training is not None:
            return History(self._training.records())
        with reading("the summary"):
            return History(RoundRecord(**row) for row in self.summary["rounds"])

    def wait(self) -> Run:
        """Return this run once it has ended. An interrupt ends it in order, so that it can be resumed.

        Raises:
            HeronError: the run failed.

        """
        if self._training is not None:
            self._training.wait()
        return self

    def stop(self) -> Run:
        """End the run now and return it; `resume` goes on inside the round that was open. A callback only asks for the end."""
        if self._training is not None:
            self._training.stop()
        return self

    def resume(self, **changes: Any) -> Run:
        """Go on with a run that has ended, and return what goes on; `changes` are arguments of `simulate` or `serve`, like `rounds=40`.

        Raises:
            HeronError: an argument may not change, or see `simulate`.

        """
        if self.is_training:
            raise ConfigurationError("the run still trains: stop() or wait() for it, then resume it")
        if self._again is None:
            raise ConfigurationError(
                f"the run in {self.directory} was only opened: go on with heron.simulate(model, data, run_dir=..., resume=True) and its other arguments"
            )
        return self._again(**changes)

    def plot(self) -> Curves:
        """Return accuracy and loss by round, as far as they are known; notebooks show it, `save(path)` writes it.

        Raises:
            PlotUnavailable: matplotlib is not installed.

        """
        return Curves(self.summary)

    def report(self, output: Path | str | None = None) -> Path:
        """Write the run as one HTML page, `report.html` in its directory by default, and return where it is.

        Raises:
            StorageError: it cannot be written.

        """
        page = Path(output) if output is not None else self.directory / "report.html"
        with spoken_in_python():
            write_report(self.summary, page)
        return page

    def model(self, checkpoint: Which = None) -> nn.Module:
        """Return the trained whole as a new module on the CPU: of the class that was handed over, or as transformers has it, else front and back in a row.

        Raises:
            HeronError: the run failed, or there is no such checkpoint.

        """
        with spoken_in_python():
            trained = self._trained(checkpoint)
            if not isinstance(self._model, nn.Module):
                return whole_of(trained.model, merges_adapters=False).module
        module = copied(self._model).cpu()
        module.load_state_dict(whole_state(trained.model), strict=False)
        return module

    def export(
        self,
        output: Path | str,
        *,
        format: ExportFormat | str | None = None,
        checkpoint: Which = None,
        keep_adapters: bool = False,
        force: bool = False,
    ) -> tuple[Path, ...]:
        """Write the trained whole for use without HERON and return what was written; the format follows from .pt2, .onnx or .safetensors, else it is hf's folder.

        Raises:
            HeronError: the format does not fit, the output exists (`force=True` replaces it), or it differs from the run's model.

        """
        output = Path(output)
        with spoken_in_python():
            chosen = _format_of(output, format)
            return deliver(self._trained(checkpoint), chosen, output=output, keeps_adapters=keep_adapters, replaces=force).paths

    def _trained(self, checkpoint: Which) -> TrainedModel:
        if checkpoint is None:
            self.wait()
        which: Any = None if checkpoint == "newest" else checkpoint
        module, name = (self._model, None) if isinstance(self._model, nn.Module) else (None, self._model)
        # Whoever started or opened the run by a name answers for it.
        vouched = Vouched(name, trusts_code=self._again is not None)
        # Whoever calls may have gradients off, and a model is tried with them.
        with torch.inference_mode(False), torch.enable_grad():
            return load_trained(self.directory, which, vouched, module=module)

    def __repr__(self) -> str:
        return f"<heron.Run {line_of(self.summary, self.is_training)}>"

    def _repr_html_(self) -> str:
        return table_of(self.summary, self.is_training)


def open_run(run_dir: Path | str, model: nn.Module | str | None = None) -> Run:
    """Open a run's directory to look at it; nothing trains, and another process may be at it.

    Args:
        run_dir: of `simulate`, `serve`, `heron simulate` or `heron-server`.
        model: needed for its model and exports where that is code of your own: the module with its first weights, or `python:MODULE:CALLABLE`.

    Raises:
        ConfigurationError: there is no run.

    """
    directory = Path(run_dir)
    with spoken_in_python():
        read_summary(directory / "summary.json")
    return Run(directory, model=model)


def _format_of(output: Path, given: ExportFormat | str | None) -> ExportFormat:
    if given is None:
        return next((kind for kind in ExportFormat if output.suffix and suffix_of(kind) == output.suffix), ExportFormat.HF)
    try:
        return ExportFormat(given)
    except ValueError:
        raise ConfigurationError(f"format is one of {', '.join(ExportFormat)}, not {given!r}") from None
