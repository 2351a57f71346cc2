"""Let atheris look for bytes that break a decoder: `python -m tests.fuzz.coverage_guided DECODER CORPUS_FOLDER... [-runs=N]`.

What it finds is written to the working directory as `crash-...`; keep it in the corpus, mend the decoder, and name the file after the defect.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any


def main(arguments: list[str]) -> None:
    """Run until the flags of libFuzzer say so."""
    import atheris

    with atheris.instrument_imports(include=["heron_common", "heron_client", "heron_server"]):
        from tests.fuzz.decoders import DECODERS, FOREIGN_FAILURES
    from heron_common.errors import HeronError

    decode: Any = DECODERS[arguments[1]]

    def run(data: bytes) -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(HeronError, *FOREIGN_FAILURES):
            decode(data)

    atheris.Setup([arguments[0], *arguments[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
