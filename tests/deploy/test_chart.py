"""The Helm chart, rendered by a stand-in and held against Kubernetes' own schemas and against our programs."""

from __future__ import annotations

import re
import tomllib
import warnings
from typing import Any

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

from heron_common.version import VERSION
from heron_server.configuration.config import ServerConfig
from heron_server.configuration.options import OptionSource, read_options
from tests.deploy.chart_renderer import lookup, render, render_text
from tests.deploy.programs import DEPLOY

CHART = DEPLOY / "helm/heron"
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "probe": {"server": {"probeSecret": "heron-probe", "storageClass": "fast"}},
    "gpu": {
        "server": {
            "image": "heron-server:0.1.0-cuda",
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        }
    },
    "elsewhere": {"client": {"serverAddress": "trainer.local:50051", "nodeSelector": {}}},
    "server alone": {"client": {"enabled": False}, "podMonitor": {"enabled": False}},
}


def documents(variant: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(document["kind"], document["metadata"]["name"]): document for document in render(CHART, "run", VARIANTS[variant])}


def pod(variant: str, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = documents(variant)[kind, name]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_schemas_accept_every_document(variant: str) -> None:
    checked = 0
    for document in documents(variant).values():
        # The Prometheus operator's kinds are not Kubernetes' own.
        if document["apiVersion"] != "monitoring.coreos.com/v1":
            kubernetes_validate.validate(document, "1.34", strict=True)
            checked += 1
    assert checked == (3 if variant == "server alone" else 4)


def test_the_schemas_would_see_a_mistake() -> None:
    document = documents("defaults")["StatefulSet", "run-server"]
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.34", strict=True)


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_pods_run_without_root_and_without_privileges(kind: str) -> None:
    spec = pod("defaults", kind, "run-server" if kind == "StatefulSet" else "run-client")
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert context == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert "memory" in container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} - {"run"} == {volume["name"] for volume in spec["volumes"]}


def test_a_run_has_one_server_and_its_volume() -> None:
    spec = documents("probe")["StatefulSet", "run-server"]["spec"]
    assert spec["replicas"] == 1 and spec["serviceName"] == "run-server"
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}}
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert f"HERON_SERVER_RUN_DIR={mounts['run']}/run" in (DEPLOY / "docker/server.Dockerfile").read_text()


def test_probes_ask_for_grpc_health_where_there_is_a_certificate_and_look_at_the_port_otherwise() -> None:
    for variant, expected in (("defaults", "tcpSocket"), ("probe", "exec")):
        (container,) = pod(variant, "StatefulSet", "run-server")["containers"]
        for name in ("startupProbe", "readinessProbe"):
            assert expected in container[name] and len({"tcpSocket", "exec"} & set(container[name])) == 1
        assert container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    command = container["readinessProbe"]["exec"]["command"]
    assert command[:2] == ["heron", "health"] and command[command.index("--tls-dir") + 1] in mounts


def test_the_servers_options_are_a_configuration() -> None:
    options = documents("defaults")["ConfigMap", "run-server"]["data"]["server.toml"]
    given = {f"HERON_SERVER_{name.upper()}": str(value) for table in tomllib.loads(options).values() for name, value in table.items()}
    config = read_options(
        ServerConfig, OptionSource("heron-server", "", environment_prefix="HERON_SERVER_", version="0"), arguments=[], environment=given
    )
    assert (config.run.clients, config.run.eval_data) == (2, "digits:test")


def test_clients_find_the_servers_service() -> None:
    environment = {e["name"]: e["value"] for e in pod("defaults", "DaemonSet", "run-client")["containers"][0]["env"]}
    service = documents("defaults")["Service", "run-server"]
    assert environment["HERON_CLIENT_SERVER"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    labels = documents("defaults")["StatefulSet", "run-server"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    elsewhere = {e["name"]: e["value"] for e in pod("elsewhere", "DaemonSet", "run-client")["containers"][0]["env"]}
    assert elsewhere["HERON_CLIENT_SERVER"] == "trainer.local:50051"


@pytest.mark.parametrize(("side", "kind"), [("server", "StatefulSet"), ("client", "DaemonSet")])
def test_pod_monitors_select_their_pods_port_and_job(side: str, kind: str) -> None:
    monitor = documents("defaults")["PodMonitor", f"run-{side}"]["spec"]
    template = documents("defaults")[kind, f"run-{side}"]["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": f"heron-{side}"}]


def test_every_value_is_used_and_versions_agree() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    used = set(re.findall(r"\.Values\.(\w+\.\w+)", "".join(path.read_text() for path in (CHART / "templates").iterdir())))
    assert used == {f"{table}.{name}" for table, inner in values.items() for name in inner}
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert VERSION.startswith(chart["appVersion"]) and values["server"]["image"].endswith(f":{chart['appVersion']}")


def test_the_stand_in_follows_gos_rules_and_refuses_what_it_does_not_know() -> None:
    scope = {"Values": {"on": True, "off": "", "name": 'a"b', "map": {"x": 1, "y": [2]}, "none": {}}}
    for text, expected in (
        ("a\n  {{- if .Values.on }}\n  b\n  {{- end }}\nc", "a\n  b\nc"),
        ("a\n{{- if .Values.off }}\nb\n{{- else }}\nd\n{{- end }}\nc", "a\nd\nc"),
        ("n: {{ .Values.name | quote }}", 'n: "a\\"b"'),
        ("m:\n  {{- toYaml .Values.map | nindent 2 }}", "m:\n  x: 1\n  y:\n  - 2"),
        ("m:\n  {{- toYaml .Values.none | nindent 2 }}", "m:\n  {}"),
        ("a {{ .Values.map.x }}\n  {{ .Values.on }}", "a 1\n  true"),
    ):
        assert render_text(text, scope) == expected
    for unknown in ('{{ include "x" . }}', "{{ .Values.name | upper }}", "{{ range .Values.map }}{{ end }}", "{{- if .Values.on }}"):
        with pytest.raises(ValueError):
            render_text(unknown, scope)
    with pytest.raises(KeyError):
        lookup(".Values.missing", scope)
