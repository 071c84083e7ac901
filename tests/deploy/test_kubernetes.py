"""deploy/kubernetes says what the code says: each tie is a check, and a copy with a renamed thing fails its check."""

from __future__ import annotations

import dataclasses
import shutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deploy.kubernetes import FOLDER, OVERLAYS, ROOT, Code, Manifests, gib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOAD_METRICS = {"deepseek_serve_requests_waiting", "deepseek_serve_kv_cache_usage_ratio"}
LABELS = {"app.kubernetes.io/name": "deepseek-serve", "app.kubernetes.io/component": "server"}


def probes(manifests: Manifests, code: Code) -> None:
    paths = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert {probe: manifests.server[probe]["httpGet"]["path"] for probe in paths} == paths
    assert {manifests.server[probe]["httpGet"]["port"] for probe in paths} == {manifests.server["ports"][0]["name"]}
    assert set(paths.values()) <= code.open_paths  # a probe has no key


def ports(manifests: Manifests, code: Code) -> None:
    [port] = manifests.server["ports"]
    [service] = manifests["base/service.yaml"]["spec"]["ports"]
    assert port["containerPort"] == code.port
    assert {int(manifests.settings(overlay)["port"]) for overlay in OVERLAYS} == {code.port}
    assert manifests["components/inference-gateway/pool.yaml"]["spec"]["targetPorts"] == [{"number": code.port}]
    assert (service["name"], service["targetPort"]) == (port["name"], port["name"])
    for path in ("base/network-policy.yaml", "components/monitoring/network-policy.yaml"):
        assert manifests[path]["spec"]["ingress"][0]["ports"] == [{"port": port["name"]}]
    assert manifests["components/inference-gateway/picker-network.yaml"]["spec"]["egress"][-1]["ports"] == [
        {"port": code.port}
    ]


def flags(manifests: Manifests, code: Code) -> None:
    for overlay in OVERLAYS:
        code.check_settings(manifests.settings(overlay))
    # Otherwise Kubernetes sets DEEPSEEK_SERVE_PORT=tcp://... because the Service has the server's name.
    assert manifests.pod["enableServiceLinks"] is False


def threads_and_memory(manifests: Manifests, code: Code) -> None:
    for overlay in OVERLAYS:
        settings, resources = manifests.settings(overlay), manifests.resources(overlay)
        limits = resources["limits"]
        assert resources["requests"] == limits
        assert int(limits["cpu"]) == int(settings["threads"]) + 1  # the API process
        if settings.get("device") == "cuda":
            assert limits["nvidia.com/gpu"] == "1"
        else:
            assert gib(limits["memory"]) - float(settings["kv_cache_memory"]) >= 3  # the processes and the weights


def drain(manifests: Manifests, code: Code) -> None:
    sleep = manifests.server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep >= 5  # endpoints reach every node meanwhile
    for overlay in OVERLAYS:
        settings = manifests.settings(overlay)
        times = [float(settings[name]) for name in ("drain_delay", "drain_timeout")]
        assert manifests.pod["terminationGracePeriodSeconds"] >= sum(times) + sleep + 10


def rollouts(manifests: Manifests, code: Code) -> None:
    deployment = manifests["base/deployment.yaml"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert manifests["base/disruption-budget.yaml"]["spec"]["maxUnavailable"] == 1
    assert deployment["replicas"] >= 2
    assert manifests["components/autoscaling-keda/scaled-object.yaml"]["spec"]["minReplicaCount"] >= 2
    assert manifests["components/autoscaling-hpa/autoscaler.yaml"]["spec"]["minReplicas"] >= 2


def selectors(manifests: Manifests, code: Code) -> None:
    assert manifests["base/deployment.yaml"]["spec"]["template"]["metadata"]["labels"] == LABELS
    assert manifests["base/service.yaml"]["metadata"]["labels"] == LABELS  # which the ServiceMonitor selects
    assert manifests["base/service.yaml"]["spec"]["selector"] == LABELS
    for path in ("disruption-budget.yaml", "deployment.yaml"):
        assert manifests[f"base/{path}"]["spec"]["selector"]["matchLabels"] == LABELS
    for path in ("monitoring/service-monitor.yaml", "inference-gateway/pool.yaml"):
        assert manifests[f"components/{path}"]["spec"]["selector"]["matchLabels"] == LABELS
    for path in ("base", "components/model-volume", "components/monitoring"):
        assert manifests[f"{path}/network-policy.yaml"]["spec"]["podSelector"]["matchLabels"] == LABELS


def metrics(manifests: Manifests, code: Code) -> None:
    [endpoint] = manifests["components/monitoring/service-monitor.yaml"]["spec"]["endpoints"]
    assert endpoint["path"] in code.open_paths
    assert endpoint["port"] == manifests["base/service.yaml"]["spec"]["ports"][0]["name"]
    assert manifests.metric_names() <= code.metrics
    scaler = manifests["components/autoscaling-keda/scaled-object.yaml"]["spec"]
    queries = [trigger["metadata"]["query"] for trigger in scaler["triggers"]]
    assert queries == [f'sum({name}{{namespace="deepseek-serve"}})' for name in sorted(LOAD_METRICS, reverse=True)]
    autoscaler = manifests["components/autoscaling-hpa/autoscaler.yaml"]["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in autoscaler} == LOAD_METRICS  # and never the CPU
    [rule] = manifests["components/autoscaling-hpa/prometheus-adapter-values.yaml"]["rules"]["custom"]
    assert all(name in rule["seriesQuery"] for name in LOAD_METRICS)


def picker(manifests: Manifests, code: Code) -> None:
    config = manifests["components/inference-gateway/picker-config.yaml"]
    parameters = {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}
    assert parameters["metrics-data-source"]["path"] in code.open_paths
    extractor = parameters["core-metrics-extractor"]
    [engine] = extractor["engineConfigs"]
    assert engine == {
        "name": extractor["defaultEngine"],
        "queuedRequestsSpec": "deepseek_serve_requests_waiting",
        "runningRequestsSpec": "deepseek_serve_requests_running",
        "kvUsageSpec": "deepseek_serve_kv_cache_usage_ratio",
    }
    assert {entry["pluginRef"] for entry in config["schedulingProfiles"][0]["plugins"]} <= parameters.keys()
    pool = manifests["components/inference-gateway/pool.yaml"]
    arguments = dict(argument.removeprefix("--").split("=") for argument in manifests.picker["containers"][0]["args"])
    assert arguments["pool-name"] == pool["metadata"]["name"]
    assert int(arguments["grpc-port"]) == pool["spec"]["endpointPickerRef"]["port"]["number"]


def security(manifests: Manifests, code: Code) -> None:
    user = {"runAsNonRoot": True, "runAsUser": code.uid, "runAsGroup": code.uid, "fsGroup": code.uid}
    assert manifests.pod["securityContext"].items() >= user.items()
    assert manifests.pod["automountServiceAccountToken"] is False
    for pod in (manifests.pod, manifests.picker):
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (manifests.server, *manifests.fetch["initContainers"], *manifests.picker["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def keys_and_models(manifests: Manifests, code: Code) -> None:
    mounts = {mount["name"]: mount for mount in manifests.server["volumeMounts"]}
    [fetch] = manifests.fetch["initContainers"]
    [shared] = manifests.fetch["containers"][0]["volumeMounts"]
    for overlay in OVERLAYS:
        settings = manifests.settings(overlay)
        assert settings["api_keys"].startswith(mounts["keys"]["mountPath"] + "/")
        if "model" in settings:
            assert settings["model"].startswith(shared["mountPath"] + "/")
    assert shared == {**fetch["volumeMounts"][0], "readOnly": True}


def images(manifests: Manifests, code: Code) -> None:
    for overlay in OVERLAYS:
        [image] = manifests[f"overlays/{overlay}/kustomization.yaml"]["images"]
        tag = f"{code.version}-gpu" if overlay == "gpu" else code.version
        assert image == {"name": manifests.server["image"], "newTag": tag}
    assert manifests.fetch["initContainers"][0]["image"] == manifests.server["image"] == "deepseek-serve"


CHECKS = [
    probes, ports, flags, threads_and_memory, drain, rollouts, selectors, metrics, picker, security, keys_and_models,
    images,
]  # fmt: skip


@pytest.fixture(scope="module")
def code() -> Code:
    return Code()


@pytest.mark.parametrize("check", CHECKS)
def test_the_manifests_agree_with_the_code(check: Callable[[Manifests, Code], None], code: Code) -> None:
    check(Manifests(FOLDER), code)


@pytest.mark.parametrize(
    ("check", "path", "old", "new"),
    [
        (probes, "base/deployment.yaml", "path: /livez", "path: /live"),
        (ports, "base/settings.env", "PORT=8000", "PORT=8001"),
        (ports, "components/inference-gateway/pool.yaml", "number: 8000", "number: 8001"),
        (flags, "base/settings.env", "SERVE_DRAIN_DELAY", "SERVE_DRAIN_WAIT"),
        (flags, "base/deployment.yaml", "enableServiceLinks: false", "enableServiceLinks: true"),
        (threads_and_memory, "overlays/cpu/settings.env", "THREADS=2", "THREADS=4"),
        (threads_and_memory, "overlays/replicas/settings.env", "KV_CACHE_MEMORY=4", "KV_CACHE_MEMORY=6"),
        (drain, "base/settings.env", "DRAIN_TIMEOUT=60", "DRAIN_TIMEOUT=80"),
        (rollouts, "base/deployment.yaml", "maxUnavailable: 0", "maxUnavailable: 1"),
        (selectors, "base/service.yaml", "component: server", "component: api"),
        (metrics, "components/autoscaling-keda/scaled-object.yaml", "requests_waiting", "requests_queued"),
        (metrics, "components/autoscaling-hpa/autoscaler.yaml", "cache_usage_ratio", "cache_usage"),
        (metrics, "components/monitoring/service-monitor.yaml", "path: /metrics", "path: /metric"),
        (picker, "components/inference-gateway/picker-config.yaml", "requests_running", "running_requests"),
        (security, "base/deployment.yaml", "runAsUser: 10001", "runAsUser: 1000"),
        (keys_and_models, "overlays/gpu/settings.env", "MODEL=/models", "MODEL=/model"),
        (images, "overlays/cpu/kustomization.yaml", "newTag: 0.1.0", "newTag: latest"),
    ],
)
def test_a_change_in_the_manifests_is_noticed(
    check: Callable[[Manifests, Code], None], path: str, old: str, new: str, code: Code, tmp_path: Path
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new))
    with pytest.raises(AssertionError):
        check(Manifests(folder), code)


@pytest.mark.parametrize(
    ("check", "name", "lost"),
    [
        (probes, "open_paths", "/startupz"),
        (metrics, "open_paths", "/metrics"),
        (metrics, "metrics", "deepseek_serve_requests_running"),
        (flags, "settings", "drain_timeout"),
        (flags, "settings", "kv_cache_memory"),
    ],
)
def test_a_name_that_the_code_drops_is_noticed(
    check: Callable[[Manifests, Code], None], name: str, lost: str, code: Code
) -> None:
    names: frozenset[str] = getattr(code, name)
    assert lost in names
    with pytest.raises(AssertionError):
        check(Manifests(FOLDER), dataclasses.replace(code, **{name: names - {lost}}))


def test_the_init_container_runs_a_command_that_the_server_has(tmp_path: Path) -> None:
    command, *arguments = Manifests(FOLDER).fetch["initContainers"][0]["args"]
    values: dict[str, Any] = {
        "$(MODEL_REPO)": "org/name",
        "$(MODEL_REVISION)": "v1",
        "$(DEEPSEEK_SERVE_MODEL)": tmp_path,
    }
    main = import_module(f"server.commands.{command}").main
    status = main([str(values.get(argument, argument)) for argument in arguments])
    assert status == 0  # the folder is there, so nothing is fetched


def test_the_alerts_are_those_of_prometheus() -> None:
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    rule = Manifests(FOLDER)["components/monitoring/prometheus-rule.yaml"]
    assert rule["spec"]["groups"] == alerts["groups"], "run make kubernetes-rules"
