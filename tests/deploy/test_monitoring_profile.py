"""The profile ``monitoring`` of Compose: its files name what is there, and fit together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import ROOT
from tests.support.compose import SERVICES

DOCKER = ROOT / "docker"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return document


def mounted(name: str) -> dict[str, Path]:
    """Files and folders of the checkout that a service sees, by where it does."""
    parts = [volume.split(":") for volume in SERVICES[name]["volumes"]]
    return {part[1]: ROOT / part[0] for part in parts if part[0].startswith("./")}


def on_this_machine(name: str, inside: str) -> Path:
    """What a service has at a path."""
    for place, source in mounted(name).items():
        if inside == place or inside.startswith(f"{place}/"):
            return source / inside[len(place) :].lstrip("/")
    raise AssertionError(f"{name} has nothing at {inside}")


def option(name: str, option: str) -> str:
    """What a service's command gives for an option."""
    (found,) = (
        word.partition("=")[2]
        for word in SERVICES[name]["command"]
        if word.startswith(f"{option}=")
    )
    return str(found)


def scraped() -> dict[str, Any]:
    (job,) = read(DOCKER / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert isinstance(job, dict)
    return job


def source() -> dict[str, Any]:
    (found,) = read(DOCKER / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert isinstance(found, dict)
    return found


DASHBOARD = json.loads((DOCKER / "grafana" / "stenopool.json").read_text("utf-8"))


def test_prometheus_is_given_its_configuration_and_every_file_that_this_names() -> None:
    place = option("prometheus", "--config.file")
    configuration = on_this_machine("prometheus", place)
    rules = read(configuration)["rule_files"]
    assert rules == ["alerts.yml"]
    for name in rules:
        (group,) = read(configuration.parent / name)["groups"]
        assert all({"alert", "expr", "annotations", "labels"} <= set(it) for it in group["rules"])


def test_every_gateway_is_scraped_where_it_listens() -> None:
    (found,) = scraped()["dns_sd_configs"]
    assert found["type"] == "A"
    assert found["names"] == ["api"]
    assert found["port"] == int(SERVICES["api"]["environment"]["API_PORT"])
    assert scraped().get("metrics_path", "/metrics") == "/metrics"
    # A name is found in a network that both are in.
    networks = SERVICES["prometheus"].get("networks", ["default"])
    assert set(networks) & set(SERVICES["api"]["networks"])


def test_the_key_is_in_a_file_that_is_made_when_prometheus_starts() -> None:
    authorization = scraped()["authorization"]
    assert set(authorization) == {"credentials_file"}
    script = SERVICES["prometheus"]["entrypoint"][-2]
    assert "GATEWAY_API_KEY" in script
    assert f">{authorization['credentials_file']}\n" in script
    assert authorization["credentials_file"].startswith("/tmp/")  # noqa: S108 - in the container
    assert "/tmp" in SERVICES["prometheus"]["tmpfs"]  # noqa: S108 - the same


def test_what_prometheus_has_seen_outlives_it_for_so_many_days_only() -> None:
    volume = f"prometheus:{option('prometheus', '--storage.tsdb.path')}"
    assert volume in SERVICES["prometheus"]["volumes"]
    assert re.fullmatch(r"\d+d", option("prometheus", "--storage.tsdb.retention.time"))


def test_its_services_are_of_the_profile() -> None:
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["monitoring"]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_all_that_is_mounted_is_there_and_cannot_be_written_to(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        if volume.startswith("./"):
            assert volume.endswith(":ro")
    assert all(path.exists() for path in mounted(name).values())


def test_grafana_asks_the_prometheus_that_runs_beside_it() -> None:
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert source()["url"] == f"http://prometheus:{port}"
    assert source()["isDefault"]
    interval = read(DOCKER / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert source()["jsonData"]["timeInterval"] == interval


def test_the_dashboard_draws_from_a_source_of_the_kind_that_there_is() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["query"] == source()["type"]
    datasource = {"type": source()["type"], "uid": f"${{{variable['name']}}}"}
    for panel in DASHBOARD["panels"]:
        assert all(target["datasource"] == datasource for target in panel.get("targets", []))


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    (provider,) = read(DOCKER / "grafana/provisioning/dashboards/stenopool.yml")["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(f"{provider['options']['path']}/")
    assert on_this_machine("grafana", home) == DOCKER / "grafana" / "stenopool.json"


def test_grafanas_folders_of_provisioning_are_the_ones_that_it_knows() -> None:
    folder = on_this_machine("grafana", "/etc/grafana/provisioning")
    assert {path.name for path in folder.iterdir()} == {"dashboards", "datasources"}


def test_the_password_is_read_from_a_file_that_is_made_when_grafana_starts() -> None:
    password = SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    match = re.fullmatch(r"\$\$__file\{(/tmp/\w+)\}", password)  # $$: a $ to Compose
    assert match is not None
    script = SERVICES["grafana"]["entrypoint"][-1]
    assert "GRAFANA_PASSWORD" in script
    assert f">{match[1]}\n" in script


def test_grafana_needs_a_password() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert "GF_AUTH_ANONYMOUS_ENABLED" not in environment
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
