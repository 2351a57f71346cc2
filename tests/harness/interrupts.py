"""Children that heed Ctrl-C: a shell that starts the suite in the background leaves it ignored, and children inherit that."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """Give a child the default; for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
