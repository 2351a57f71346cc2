"""Settings that the libraries under us read from the environment when they are first imported."""

from __future__ import annotations

import os

QUIET = {
    # gRPC's own log lines repeat what our errors say in a sentence.
    "GRPC_VERBOSITY": "NONE",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # ONNX Runtime 1.29 and later otherwise reports to its maker from every process: nothing may leave a device but what HERON sends. Two releases, two names.
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
}


def quiet_libraries() -> None:
    """Set what is not set already; call before the first import of grpc or onnxruntime."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
