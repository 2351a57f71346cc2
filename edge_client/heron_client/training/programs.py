"""The programs of a run, of which a device holds one of each kind at a time: a graph of a thousand nodes takes megabytes, whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from heron_client.training.runtime import Program
from heron_common.errors import ProgramError
from heron_common.specification.model_spec import ProgramKind, ProgramReference


class Programs:
    """Loads a program when it is asked for, in place of the one of its kind for texts of another length; batches of a length come one after the other."""

    def __init__(self, references: Iterable[ProgramReference], load: Callable[[ProgramReference], Program]) -> None:
        """Take what a membership names.

        Raises:
            ProgramError: not every kind has a program for each length.

        """
        self._references = {(reference.kind, reference.length): reference for reference in references}
        self._load = load
        self._loaded: dict[ProgramKind, tuple[int, Program]] = {}
        self.kinds = {kind for kind, _ in self._references}
        for length in {length for _, length in self._references}:
            for kind in self.kinds:
                if (kind, length) not in self._references:
                    raise ProgramError(f"the {kind.value} program for texts of {length} tokens is missing: restart the server")

    @property
    def places(self) -> list[tuple[ProgramKind, int]]:
        """Every kind and length that there is a program for, shortest texts first."""
        return sorted(self._references, key=lambda place: place[1])

    def program(self, kind: ProgramKind, length: int) -> Program:
        """Return the program of a kind for texts of this length, 0 where samples have one shape; use it before another length is asked for.

        Raises:
            HeronError: it cannot be fetched or loaded.

        """
        loaded_length, loaded = self._loaded.get(kind, (-1, None))
        if loaded is not None and loaded_length == length:
            return loaded
        # Before the other is loaded, or there would be two.
        loaded = None
        self._loaded.pop(kind, None)
        program = self._load(self._references[kind, length])
        self._loaded[kind] = (length, program)
        return program

    def load_each(self) -> None:
        """Load every program once, shortest texts first, so that one which cannot be loaded here is known before a round begins.

        Raises:
            HeronError: one cannot be fetched or loaded.

        """
        for kind, length in self.places:
            self.program(kind, length)
