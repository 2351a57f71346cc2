"""The rounds of a run as plain records."""

from __future__ import annotations

import dataclasses
from typing import Any

from heron_common.errors import ConfigurationError
from heron_server.summary import RoundRecord


class History(tuple[RoundRecord, ...]):
    """Finished rounds in order, a tuple of records."""

    __slots__ = ()

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each round and a column for each figure.

        Raises:
            ConfigurationError: pandas is not installed.

        """
        try:
            import pandas
        except ImportError as exc:
            raise ConfigurationError("to_pandas() needs pandas, which is not installed here: pip install pandas") from exc
        return pandas.DataFrame(
            [dataclasses.asdict(record) for record in self], columns=[field.name for field in dataclasses.fields(RoundRecord)]
        )
