"""What a Python program hands over as objects where a command has names: a module, and data by the names that the options have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from heron_common.data.sources import DataSource, open_source


@dataclass(frozen=True)
class Objects:
    """A module to train, and opened data by name; nothing by default."""

    model: nn.Module | None = None
    sources: Mapping[str, DataSource] = field(default_factory=dict)

    def open_source(self, name: str) -> DataSource:
        """Return data that were handed over by this name, else open those that it names.

        Raises:
            ConfigurationError, DataError: see `open_source`.

        """
        return self.sources[name] if name in self.sources else open_source(name)


NO_OBJECTS = Objects()
"""What every command hands over."""
