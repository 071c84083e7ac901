"""The Compose file fits the server and the image: settings, port, probe, user, times, version. It is locked down."""

from __future__ import annotations

import re
import tomllib

import pytest

from engine.config import EngineConfig
from server.config import ServerConfig
from server.routes import operations
from tests.deploy.files import DEPLOY, ROOT, read_yaml

COMPOSE = read_yaml("compose/compose.yaml")
SERVER = COMPOSE["services"]["server"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PREFIX = "DEEPSEEK_SERVE_"
SETTINGS = {**EngineConfig.model_fields, **ServerConfig.model_fields}


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([smh])", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def test_environment_and_file_hold_settings_of_the_server():
    names = {name.removeprefix(PREFIX).lower() for name in SERVER["environment"]}
    assert names <= SETTINGS.keys() | {"config"}
    assert all(name.startswith(PREFIX) for name in SERVER["environment"])
    text = (DEPLOY / "compose/server/serve.yaml").read_text()
    commented_out = re.findall(r"^# ([a-z-]+): ", text, re.MULTILINE)
    values = {name.replace("-", "_"): value for name, value in read_yaml("compose/server/serve.yaml").items()}
    assert commented_out
    assert {name.replace("-", "_") for name in commented_out} | values.keys() <= SETTINGS.keys()
    for kind in (EngineConfig, ServerConfig):
        kind(**{name: value for name, value in values.items() if name in kind.model_fields})


def test_the_mounted_config_is_there():
    [folder] = [mount.split(":")[0] for mount in SERVER["volumes"] if ":/config:" in mount]
    path = SERVER["environment"][PREFIX + "CONFIG"].replace("/config", folder, 1)
    assert (DEPLOY / "compose" / path).is_file()


def test_the_port_and_the_probe_are_the_servers():
    port = ServerConfig.model_fields["port"].default
    assert [mapping.rsplit(":", 2)[1:] for mapping in SERVER["ports"]] == [[str(port), str(port)]]
    assert f"EXPOSE {port}" in DOCKERFILE
    [(probed, path)] = re.findall(r"http://127.0.0.1:(\d+)(/\w+)", " ".join(SERVER["healthcheck"]["test"]))
    assert int(probed) == port
    assert path in {route.path for route in operations.router.routes}


def test_running_requests_may_finish_before_the_container_is_killed():
    drain = float(SERVER["environment"][PREFIX + "DRAIN_TIMEOUT"])
    delay = float(SERVER["environment"].get(PREFIX + "DRAIN_DELAY", ServerConfig.model_fields["drain_delay"].default))
    assert seconds(SERVER["stop_grace_period"]) >= drain + delay + 10  # the engine's end, and Python's


def test_the_image_is_the_projects():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    gpu = read_yaml("compose/compose.gpu.yaml")["services"]["server"]
    assert (SERVER["image"], gpu["image"]) == (f"deepseek-serve:{version}", f"deepseek-serve:{version}-gpu")
    assert f"deepseek-serve:{version}" in (ROOT / "docs/monitoring.md").read_text()
    for service in (SERVER, gpu):
        assert re.search(rf"^FROM .* AS {service['build']['target']}$", DOCKERFILE, re.MULTILINE)
    uid = re.search(r"--uid (\d+)", DOCKERFILE)[1]
    assert SERVER["user"].split(":")[0] == uid


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_locked_down(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["mem_limit"]
    assert service["healthcheck"]["test"]
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(re.match(r"127\.0\.0\.1:|\$\{\w+:-127\.0\.0\.1\}:", mapping) for mapping in service["ports"])
    for mount in service["volumes"]:
        source, *_, mode = mount.split(":")
        assert source in COMPOSE["volumes"] or mode == "ro"


def test_grafana_has_no_password_of_ours():
    password = COMPOSE["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert re.fullmatch(r"\$\{GRAFANA_ADMIN_PASSWORD:\?.+\}", password)
