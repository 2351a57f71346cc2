"""What is said where only the client is installed and a command needs the server's libraries."""

from __future__ import annotations

from heron_common.errors import ConfigurationError

SERVER_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "pydantic",
    "pydantic_core",
    "safetensors",
    "onnx",
    "onnxscript",
    "grpc_health",
    "google",
    "cryptography",
)
"""Top-level modules of the extra `server`; google.rpc is one of them, google.protobuf is always there."""


def raise_if_missing(error: ModuleNotFoundError) -> None:
    """Do nothing if the module that is missing is none of the server's libraries.

    Raises:
        ConfigurationError: it is one.

    """
    name = (error.name or "").partition(".")[0]
    if name in SERVER_LIBRARIES:
        raise ConfigurationError(f"the package `{error.name}` is not installed: pip install 'heron-sfl[server]'") from error
