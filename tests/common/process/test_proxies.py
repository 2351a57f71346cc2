"""Proxies of the environment: none to this machine; elsewhere the variable that was obeyed is named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from heron_client.network.channel import open_channel, translate
from heron_common.process.proxies import obeyed_variable, proxy_options
from heron_common.protocol.timing import Timing
from heron_proto.v1 import split_training_pb2 as messages
from tests.harness.cluster import free_port

pytestmark = pytest.mark.process


@pytest.mark.parametrize("target", ["127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1", "0.0.0.0:1", "[::]:1"])
def test_this_machine_is_never_asked_by_way_of_another(target: str) -> None:
    assert proxy_options(target) == [("grpc.enable_http_proxy", 0)]
    assert obeyed_variable(target, {"http_proxy": "http://proxy:1"}) is None


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"http_proxy": "p"}, "http_proxy"),
        ({"http_proxy": "p", "https_proxy": "q"}, "https_proxy"),
        ({"http_proxy": "p", "grpc_proxy": "q"}, "grpc_proxy"),
        ({"http_proxy": "p", "no_proxy": "other.local, .example.org"}, None),
        ({"http_proxy": "p", "no_proxy": "other.local"}, "http_proxy"),
        ({"http_proxy": "p", "no_proxy": "trainer.example.org", "no_grpc_proxy": "other"}, "http_proxy"),
        ({"HTTP_PROXY": "p"}, None),
    ],
)
def test_the_variable_that_grpc_obeys_is_known(environment: dict[str, str], variable: str | None) -> None:
    assert proxy_options("trainer.example.org:1") == []
    assert obeyed_variable("trainer.example.org:1", environment) == variable


def test_a_refusal_names_the_variable_that_was_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    stub, close = open_channel("203.0.113.7:1", Timing())
    with pytest.raises(grpc.RpcError) as caught:
        stub.Join(messages.JoinRequest(), timeout=10)
    close()
    sentence = str(translate(caught.value, "203.0.113.7:1", has_joined=False))
    assert "asked through the proxy that the variable http_proxy names: unset it, or name the host in no_proxy" in sentence
    assert "proxy" not in str(translate(caught.value, "127.0.0.1:1", has_joined=False)).replace("http_proxy", "")


def test_a_server_on_this_machine_answers_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        stub, close = open_channel(f"127.0.0.1:{port}", Timing())
        with pytest.raises(grpc.RpcError) as caught:
            stub.Join(messages.JoinRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        close()
    finally:
        server.stop(0)
