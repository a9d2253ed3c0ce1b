"""docker/kubernetes: what a cluster would reject, and what the service needs of it."""

from __future__ import annotations

import importlib.util
import ipaddress
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml
from starlette.routing import Mount, Route

from api.__main__ import SHUTDOWN_S
from api.app import STREAMS_END_S, create_app
from api.streams import routes as live
from common.settings import ROOT, SECRETS, Settings
from scripts.cli.cli import LAZY_COMMANDS, steno
from tests.support.kustomize import Manifest, build, containers, files_of, read
from tests.support.setting_names import secret_settings, settings_named
from worker.context import OUTAGE_TIMEOUT_S
from worker.dispatcher.__main__ import LONGEST_END_S

FOLDER = ROOT / "docker" / "kubernetes"
EXAMPLE = FOLDER / "overlays" / "example"
RELEASES = ("1.30", kubernetes_validate.latest_version())
"""The first Kubernetes whose `preStop` knows `sleep`, and the newest whose schemas are here."""
PORTS = {"http": 8000}
USER = 10001
PRIVATE = (
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.31.0.1",
    "192.168.1.1",
)
MEBIBYTES = {"Mi": 1, "Gi": 1024}

RULES: dict[str, Any] = {"stabilizationWindowSeconds": int, "policies": list}
CUSTOM: dict[str, Any] = {
    # What the definitions of KEDA and the Prometheus Operator allow, as far as it is used here.
    "ScaledObject": {
        "scaleTargetRef": {"name": str},
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {"scaleUp": {**RULES, "selectPolicy": str}, "scaleDown": RULES}
            }
        },
        "triggers": [
            {
                "type": str,
                "metricType": str,
                "metadata": {
                    "host": str,
                    "port": str,
                    "userName": str,
                    "dbName": str,
                    "sslmode": str,
                    "query": str,
                    "targetQueryValue": str,
                },
                "authenticationRef": {"name": str},
            }
        ],
    },
    "TriggerAuthentication": {"secretTargetRef": [{"parameter": str, "name": str, "key": str}]},
    "ServiceMonitor": {
        "selector": {"matchLabels": {str: str}},
        "endpoints": [{"port": str, "path": str, "interval": str}],
    },
}


def with_all_components() -> list[Manifest]:
    """The example's overlay with what it leaves out as well."""
    built = build(EXAMPLE)
    (kustomization,) = read(EXAMPLE / "kustomization.yaml")
    used = [(EXAMPLE / name).resolve() for name in kustomization["components"]]
    for component in sorted((FOLDER / "components").iterdir()):
        if component not in used:
            build(component, built)
    return built


SETS = {
    "base": build(FOLDER / "base"),
    "local": build(FOLDER / "overlays" / "local"),
    "example": build(EXAMPLE),
    "all": with_all_components(),
}


def every(*kinds: str) -> list[Any]:
    """The objects of these kinds (or of any) in all sets, as parameters."""
    return [
        pytest.param(manifest, id=f"{manifest['kind']} {manifest['metadata']['name']} in {name}")
        for name, manifests in SETS.items()
        for manifest in manifests
        if not kinds or manifest["kind"] in kinds
    ]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [
        each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def misfits(value: Any, shape: Any, where: str = "spec") -> Iterator[str]:
    """Where ``value`` has fields or types that ``shape`` has not."""
    if isinstance(shape, type):
        if not isinstance(value, shape) or isinstance(value, bool):
            yield where
    elif isinstance(shape, list):
        for index, each in enumerate(value):
            yield from misfits(each, shape[0], f"{where}[{index}]")
    elif str in shape:
        for key, each in value.items():
            yield from misfits(each, shape[str], f"{where}.{key}")
    else:
        for key, each in value.items():
            if key in shape:
                yield from misfits(each, shape[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * MEBIBYTES[quantity[-2:]]


@cache
def routes() -> frozenset[str]:
    """The paths that a gateway answers."""
    app = create_app()
    hidden = {route.path for route in app.routes if isinstance(route, Route | Mount)}
    return frozenset(hidden | set(app.openapi()["paths"]) | {"/"})


def pod_of(manifest: Manifest) -> Manifest:
    pod: Manifest = manifest["spec"]["template"]["spec"]
    return pod


# --- what the cluster is given -------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("manifest", every())
def test_kubernetes_knows_every_field(manifest: Manifest, release: str) -> None:
    if manifest["kind"] in CUSTOM:
        assert list(misfits(manifest["spec"], CUSTOM[manifest["kind"]])) == []
    else:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_field_that_is_misspelt_would_be_found() -> None:
    manifest = deepcopy(one(SETS["base"], "Deployment", "worker"))
    containers(manifest)[0]["livenessProbe"]["periodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="periodSecond"):
        kubernetes_validate.validate(manifest, RELEASES[0], strict=True)
    spec = deepcopy(one(SETS["example"], "ScaledObject", "worker")["spec"])
    spec["triggers"][0]["metadata"]["pasword"] = "a"
    assert list(misfits(spec, CUSTOM["ScaledObject"])) == ["spec.triggers[0].metadata.pasword"]


@pytest.mark.parametrize("manifest", every("ScaledObject"))
def test_keda_makes_an_autoscaler_that_kubernetes_knows(manifest: Manifest) -> None:
    spec = manifest["spec"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": manifest["metadata"],
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", **spec["scaleTargetRef"]},
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    for release in RELEASES:
        kubernetes_validate.validate(autoscaler, release, strict=True)


def test_every_file_is_of_use() -> None:
    folders = [path.parent for path in FOLDER.rglob("kustomization.yaml")]
    named = {path.resolve() for folder in folders for path in files_of(folder)}
    there = {path for pattern in ("*.yaml", "*.env") for path in FOLDER.rglob(pattern)}
    assert {path for path in there if path.name != "kustomization.yaml"} <= named
    missing = {path for path in named if not path.exists()}
    assert missing <= {EXAMPLE / "secrets.env"}, "only secrets are not in git"
    assert (EXAMPLE / "secrets.env.example").exists()


@pytest.mark.parametrize("manifest", every("Deployment", "Job"))
def test_images_are_of_this_release_and_of_no_registry(manifest: Manifest) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for container in containers(manifest):
        path, _, tag = container["image"].partition(":")
        registry, _, name = path.rpartition("/")
        assert tag == project["version"]
        assert registry in {"", "REGISTRY"}
        assert name in {"stenopool-gateway", "stenopool-worker"}


# --- what refers to what -------------------------------------------------------------------------


@pytest.mark.parametrize("manifests", SETS.values(), ids=SETS.keys())
def test_whatever_selects_finds_its_pods(manifests: list[Manifest]) -> None:
    pods = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] in {"Deployment", "Job", "StatefulSet"}
    ]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        wanted = selector.get("matchLabels", selector).items()  # a Service's are the selector
        matching = [labels for labels in pods if wanted <= labels.items()]
        match manifest["kind"]:
            case "StatefulSet" | "Deployment":
                assert spec["template"]["metadata"]["labels"] in matching
                assert wanted
                if manifest["kind"] == "StatefulSet":
                    assert one(manifests, "Service", spec["serviceName"])
                    continue
                for constraint in pod_of(manifest)["topologySpreadConstraints"]:
                    assert constraint["labelSelector"]["matchLabels"].items() == wanted
            case "Service" | "NetworkPolicy":
                assert wanted
                assert matching
            case "PodDisruptionBudget":
                assert len(matching) == 1
            case "HorizontalPodAutoscaler" | "ScaledObject":
                target = one(manifests, "Deployment", spec["scaleTargetRef"]["name"])
                assert "replicas" not in target["spec"]
            case "ServiceMonitor":
                service = one(manifests, "Service", "api")
                assert wanted <= service["metadata"]["labels"].items()
                ports = {port["name"] for port in service["spec"]["ports"]}
                assert {endpoint["port"] for endpoint in spec["endpoints"]} <= ports


@pytest.mark.parametrize("manifest", every("Deployment", "Job"))
def test_what_is_mounted_is_there_and_what_is_there_is_mounted(manifest: Manifest) -> None:
    volumes = {volume["name"] for volume in pod_of(manifest)["volumes"]}
    for container in containers(manifest):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", every("Deployment", "Job"))
def test_every_command_is_there(manifest: Manifest) -> None:
    for container in containers(manifest):
        module, *arguments = container["args"]  # the images' entry point is `python -m`
        assert importlib.util.find_spec(module) is not None
        if module == "scripts":
            assert arguments[0] in {*steno.commands, *LAZY_COMMANDS}
        else:
            assert not arguments


@pytest.mark.parametrize("manifest", every("Deployment"))
def test_every_probe_asks_what_is_there(manifest: Manifest) -> None:
    for container in containers(manifest):
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        probes = [container[name] for name in container if name.endswith("Probe")]
        assert probes
        for probe in probes:
            if "httpGet" in probe:
                assert probe["httpGet"]["path"] in routes()
                assert ports[probe["httpGet"]["port"]] == PORTS["http"]
            else:
                env, folder, python, option, module, part = probe["exec"]["command"]
                # Kubernetes starts it in / and not where the image does.
                assert (env, folder, python, option) == ("env", "--chdir=/app", "python", "-m")
                assert importlib.util.find_spec(module) is not None
                assert part == container["name"]


@pytest.mark.parametrize("manifest", every("Deployment"))
def test_an_outage_of_minutes_restarts_nothing(manifest: Manifest) -> None:
    for container in containers(manifest):
        probe = container["livenessProbe"]
        if "exec" in probe:  # it fails while Postgres or Redis is out
            assert probe["periodSeconds"] * probe["failureThreshold"] > OUTAGE_TIMEOUT_S
        else:
            assert probe["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize("manifest", every("Deployment"))
def test_what_is_stopped_has_the_time_to_drain(manifest: Manifest) -> None:
    for container in containers(manifest):
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        needed = {
            "api": sleep.get("seconds", 0) + SHUTDOWN_S,
            "live": sleep.get("seconds", 0) + STREAMS_END_S + SHUTDOWN_S,
            "worker": Settings().worker.stop_period + 10,
            "dispatcher": LONGEST_END_S,
        }[container["name"]]
        assert pod_of(manifest)["terminationGracePeriodSeconds"] >= needed


@pytest.mark.parametrize("name", ["api", "dispatcher", "live", "worker"])
def test_an_update_stops_none_before_another_is_there(name: str) -> None:
    update = one(SETS["example"], "Deployment", name)["spec"]["strategy"]["rollingUpdate"]
    assert update["maxUnavailable"] == 0
    assert update["maxSurge"]


def test_an_upload_of_the_greatest_size_fits() -> None:
    largest = Settings().upload.max_bytes / 2**20
    room = {
        name: next(
            mebibytes(volume["emptyDir"]["sizeLimit"])
            for volume in pod_of(one(SETS["base"], "Deployment", name))["volumes"]
            if volume["name"] == "data"
        )
        for name in ("api", "worker")
    }
    assert room["api"] >= 8 * largest
    assert room["worker"] >= 2 * largest


def test_live_streams_have_a_gateway_with_the_engines_and_the_weights() -> None:
    (worker,) = containers(one(SETS["example"], "Deployment", "worker"))
    (gateway,) = containers(one(SETS["example"], "Deployment", "live"))
    assert gateway["args"] == ["api"]
    assert gateway["image"] == worker["image"]
    assert gateway["env"] == [{"name": "STREAM_PRELOAD", "value": "true"}]
    assert int(gateway["resources"]["requests"]["cpu"]) >= Settings().stream.threads


def test_files_that_all_share_are_with_all() -> None:
    for manifest in SETS["all"]:
        if manifest["kind"] == "Deployment":
            (data,) = [each for each in pod_of(manifest)["volumes"] if each["name"] == "data"]
            assert data["persistentVolumeClaim"] == {"claimName": "stenopool-data"}


def test_what_is_applied_before_the_migration_is_what_it_needs_and_nothing_that_runs() -> None:
    running = {"api", "dispatcher", "live", "worker"}
    page = (FOLDER / "README.md").read_text("utf-8")
    selector = f"-l 'app.kubernetes.io/component notin ({', '.join(sorted(running))})'"
    assert page.count(selector) == page.count(" notin ") == 3
    for manifests in SETS.values():
        first = [
            each
            for each in manifests
            if each["metadata"]["labels"].get("app.kubernetes.io/component") not in running
        ]
        kinds = {each["kind"] for each in first}
        needed = {"Job", "ConfigMap", "ServiceAccount", "NetworkPolicy"}
        servers = {"StatefulSet", "Service"}
        others = servers | {"Namespace", "Secret", "PersistentVolumeClaim"}
        assert needed <= kinds <= needed | others
        assert {each["kind"] for each in manifests} - kinds >= {"Deployment"}


# --- settings and secrets ------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", every("ConfigMap", "Secret", "Deployment", "Job"))
def test_every_name_is_one_of_a_setting(manifest: Manifest) -> None:
    if "data" in manifest:
        names = set(manifest["data"])
    else:
        named = [each for container in containers(manifest) for each in container.get("env", [])]
        names = {each["name"] for each in named}
    assert names <= set(settings_named())


@pytest.mark.parametrize("manifest", every("ConfigMap"))
def test_the_settings_mean_something(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in settings_named():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, value in manifest["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.api.host == "0.0.0.0"  # noqa: S104 - in a pod of its own
    assert settings.database.address is not None
    assert settings.redis.address is not None
    assert settings.metrics.open


@pytest.mark.parametrize("manifest", every("ConfigMap"))
def test_what_is_secret_is_not_in_the_open(manifest: Manifest) -> None:
    assert "S3_SECRET_ACCESS_KEY" in secret_settings()
    assert secret_settings() & set(manifest["data"]) == {"DATABASE_URL"}
    assert urlsplit(manifest["data"]["DATABASE_URL"]).password is None


def test_git_has_no_secrets() -> None:
    for path in FOLDER.rglob("*.yaml"):
        assert not any(
            document.get("kind") == "Secret" for document in read(path) if "kind" in document
        )
    for value in one(SETS["example"], "Secret", "stenopool")["data"].values():
        assert value.startswith("<")
        assert value.endswith(">")
    assert "secrets.env" in (FOLDER / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("manifest", every("Deployment", "Job"))
def test_secrets_are_files_where_they_are_looked_for(manifest: Manifest) -> None:
    (volume,) = [each for each in pod_of(manifest)["volumes"] if "secret" in each]
    assert volume["secret"]["secretName"] == "stenopool"
    for container in containers(manifest):
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
        assert mount["mountPath"] == str(SECRETS[1])
        assert not any(
            "secretKeyRef" in each.get("valueFrom", {}) for each in container.get("env", [])
        )
        assert all("secretRef" not in each for each in container["envFrom"])


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_servers_for_a_trial_have_the_addresses_and_secrets_of_the_settings(name: str) -> None:
    local = SETS["local"]
    settings = one(local, "ConfigMap", "stenopool")["data"]
    hosts = {
        "postgres": urlsplit(settings["DATABASE_URL"]).hostname,
        "redis": settings["REDIS_HOST"],
    }
    (port,) = one(local, "Service", hosts[name])["spec"]["ports"]
    (container,) = containers(one(local, "StatefulSet", name))
    assert container["ports"] == [{"containerPort": port["port"]}]
    password = {"postgres": "DATABASE_PASSWORD", "redis": "REDIS_PASSWORD"}[name]
    assert f"{SECRETS[1]}/{password}" in str(container)
    assert str(SECRETS[1]) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings["STORAGE_BACKEND"] == "local"


@pytest.mark.parametrize("manifest", every("ScaledObject"))
def test_keda_asks_the_database_that_the_pods_use(manifest: Manifest) -> None:
    manifests = next(each for each in SETS.values() if manifest in each)
    url = urlsplit(one(manifests, "ConfigMap", "stenopool")["data"]["DATABASE_URL"])
    (trigger,) = manifest["spec"]["triggers"]
    asked = trigger["metadata"]
    assert asked["host"] == url.hostname
    assert asked["port"] == str(url.port)
    assert asked["userName"] == url.username
    assert asked["dbName"] == url.path.removeprefix("/")
    assert [asked["sslmode"]] == parse_qs(url.query)["sslmode"]
    authentication = one(manifests, "TriggerAuthentication", trigger["authenticationRef"]["name"])
    (password,) = authentication["spec"]["secretTargetRef"]
    assert password["key"] in one(manifests, "Secret", password["name"])["data"]


# --- security ------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", every("Deployment", "Job"))
def test_pods_may_do_nothing_that_they_need_not(manifest: Manifest) -> None:
    pod = pod_of(manifest)
    assert pod["automountServiceAccountToken"] is False
    # A Service named `api` would set API_PORT=tcp://..., which is a setting.
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    # With a shared volume, the owner of its files is not set at every start.
    assert {**pod["securityContext"], "fsGroupChangePolicy": "Always"} == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "Always",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        written = {each["mountPath"] for each in container["volumeMounts"]}
        assert {"/data", "/tmp"} <= written  # noqa: S108 - the image's
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for volume in pod["volumes"]:
        if "emptyDir" in volume:
            assert "sizeLimit" in volume["emptyDir"]


def policies() -> dict[str, Manifest]:
    return {
        each["metadata"]["name"]: each["spec"]
        for each in SETS["base"]
        if each["kind"] == "NetworkPolicy"
    }


def components(policy: Manifest) -> set[str]:
    """Whose pods a policy is for."""
    (expression,) = policy["podSelector"]["matchExpressions"]
    assert expression["key"] == "app.kubernetes.io/component"
    assert expression["operator"] == "In"
    return set(expression["values"])


def test_pods_connect_only_where_a_policy_allows_it() -> None:
    nothing = policies()["stenopool-nothing-else"]
    assert nothing["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "stenopool"}}
    assert set(nothing["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & set(nothing)
    (allowing,) = [each for each in policies().values() if "ingress" in each]
    assert components(allowing) == {"api", "live"}


def blocks() -> list[Manifest]:
    """The addresses that policies let pods connect to."""
    return [
        peer["ipBlock"]
        for each in policies().values()
        for rule in each.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]


def allowed(address: str, block: Manifest) -> bool:
    excepted = [ipaddress.ip_network(each) for each in block.get("except", [])]
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(block["cidr"]) and not any(ip in each for each in excepted)


def test_the_internet_is_no_way_into_the_network_inside() -> None:
    internet = [block for block in blocks() if block["cidr"] == "0.0.0.0/0"]
    assert len(internet) == 2, "the gateways', and that of workers and dispatchers"
    assert not [ip for ip in PRIVATE for block in internet if allowed(ip, block)]
    assert not [block for block in blocks() if allowed("169.254.169.254", block)], "metadata"


def test_only_those_who_use_clients_urls_reach_all_of_the_internet() -> None:
    assert components(policies()["stenopool-internet"]) == {"worker", "dispatcher"}
    assert components(policies()["stenopool-storage"]) == {"api", "live"}
    (rule,) = policies()["stenopool-storage"]["egress"]
    assert rule["ports"] == [{"port": 443}]


# --- from outside --------------------------------------------------------------------------------


def led_to(path: str) -> bool:
    """Whether the Ingress of the example leads there."""
    (rule,) = one(SETS["example"], "Ingress", "api")["spec"]["rules"]
    return any(
        path == each["path"]
        or (each["pathType"] == "Prefix" and path.startswith(each["path"].rstrip("/") + "/"))
        for each in rule["http"]["paths"]
    )


def test_the_ingress_leads_to_all_but_what_is_for_the_inside() -> None:
    assert "/api/v1/upload" in routes()
    assert {path for path in routes() if not led_to(path)} == {"/metrics", "/readyz"}


def test_the_ingress_leads_to_services_and_ports_that_there_are() -> None:
    (rule,) = one(SETS["example"], "Ingress", "api")["spec"]["rules"]
    for path in rule["http"]["paths"]:
        backend = path["backend"]["service"]
        ports = one(SETS["example"], "Service", backend["name"])["spec"]["ports"]
        assert backend["port"]["name"] in {port["name"] for port in ports}


def test_the_ingress_leads_live_streams_and_nothing_else_to_their_gateway() -> None:
    ingress = one(SETS["example"], "Ingress", "api")
    (rule,) = ingress["spec"]["rules"]
    there = {
        (each["path"], each["pathType"])
        for each in rule["http"]["paths"]
        if each["backend"]["service"]["name"] == "live"
    }
    assert there == {(getattr(route, "path", ""), "Exact") for route in live.router.routes}
    assert ingress["metadata"]["annotations"]["nginx.org/websocket-services"] == "live"


def test_the_ingress_waits_as_long_as_an_answer_may_take() -> None:
    annotations = one(SETS["example"], "Ingress", "api")["metadata"]["annotations"]
    for name, value in annotations.items():
        if name.endswith("timeout"):
            assert int(value.rstrip("s")) > Settings().openai.wait
        if name.endswith("body-size"):
            assert value == "0", "the gateway names the limit better"


def test_the_alerts_can_be_loaded_as_documented() -> None:
    alerts = (ROOT / "docker" / "prometheus" / "alerts.yml").read_text()
    head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nspec:\n"
    rule = yaml.safe_load(head + "".join(f"  {line}\n" for line in alerts.splitlines()))
    assert rule["spec"]["groups"][0]["rules"]
