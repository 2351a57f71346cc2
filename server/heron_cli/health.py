"""`heron health`: ask a server's gRPC health service, with a certificate where it wants one; what probes of containers run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import ExitCode
from heron_common.process.proxies import proxy_options
from heron_common.protocol.grpc_options import channel_options
from heron_common.terminal.option_parser import host_and_port
from heron_common.terminal.output import say

TIMEOUT_SECONDS = 5.0


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "health",
        help="ask a server's gRPC health service, for probes",
        description="Exit codes: 0 the server serves, 1 it drains, 4 it refuses this certificate, 5 it does not answer.",
    )
    parser.add_argument("address", type=host_and_port, metavar="HOST:PORT", help="where heron-server listens, like 127.0.0.1:50051")
    parser.add_argument(
        "--tls-dir", type=Path, metavar="PATH", help="a device's folder (`heron certs issue probe`); needed where the server has --tls-dir"
    )
    parser.set_defaults(run=run_health)


def run_health(options: argparse.Namespace) -> int:
    """Ask once and say the answer.

    Raises:
        ConfigurationError: the folder cannot be used.
        TransportError: the server does not answer.
        RefusedError: it refuses the certificate.

    """
    import grpc

    try:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    except ImportError as exc:
        raise ConfigurationError(
            f"heron health needs the package `grpcio-health-checking` ({exc}): pip install 'heron-sfl[server]'"
        ) from exc
    from heron_client.network.channel import translate

    with _channel(options.address, options.tls_dir) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as exc:
            raise translate(exc, options.address, has_joined=False) from exc
    names = health_pb2.HealthCheckResponse.ServingStatus
    # A number of no name is what protobuf makes of a status that it does not know.
    say(names.Name(answer.status).lower() if answer.status in names.values() else f"status {answer.status}")
    return ExitCode.OK if answer.status == health_pb2.HealthCheckResponse.SERVING else ExitCode.FAILURE


def _channel(address: str, tls_dir: Path | None) -> Any:
    import grpc

    options = [*channel_options(), *proxy_options(address)]
    if tls_dir is None:
        return grpc.insecure_channel(address, options=options)
    from heron_common.files.tls_directory import TlsRole, read_credentials

    own = read_credentials(tls_dir, TlsRole.DEVICE, time.time())
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(own.ca_pem, own.key_pem, own.certificate_pem), options=options)
