"""The simulation's tests run servers in their own process, as the server's do."""

from __future__ import annotations

from tests.server.conftest import one_torch_thread, program_cache_dir, serve

__all__ = ["one_torch_thread", "program_cache_dir", "serve"]
