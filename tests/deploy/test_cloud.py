"""docker/cloud: what AWS would reject, and what the service needs of it."""

from __future__ import annotations

import ast
import io
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.validate import ParamValidator
from pydantic import SecretStr
from redis import SSLConnection

from common.redis import queue
from common.settings import ROOT, Settings, StorageSettings
from common.storage import s3
from tests.support.setting_names import secret_settings, settings_named
from worker.context import OUTAGE_TIMEOUT_S

FOLDER = ROOT / "docker" / "cloud" / "aws"
OPERATIONS = {
    "task": ("ecs", "RegisterTaskDefinition"),
    "service": ("ecs", "CreateService"),
    "scaling-target": ("application-autoscaling", "RegisterScalableTarget"),
    "scaling-policy": ("application-autoscaling", "PutScalingPolicy"),
}
"""What a file is the input of, by the beginning of its name."""

FARGATE = {"256": {512, 1024, 2048}, "512": {1024, 2048, 3072, 4096}, "1024": range(2048, 8193)}
"""MB of memory that there are for so many thousandths of a core."""

ALLOWS = {
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "delete_objects": {"s3:DeleteObject"},
    "get_object": {"s3:GetObject"},
    "head_bucket": {"s3:ListBucket"},
    "head_object": {"s3:GetObject"},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "list_objects_v2": {"s3:ListBucket"},
    "put_object": {"s3:PutObject"},
    "upload_file": {"s3:PutObject", "s3:AbortMultipartUpload"},  # in parts, given up when one fails
}
"""What whoever calls a method of the client must be allowed."""
NAMING = {"get_paginator", "generate_presigned_url"}
"""Methods whose first argument is the one that counts."""


def files(prefix: str) -> list[Any]:
    found = sorted(FOLDER.glob(f"{prefix}*.json"))
    assert found
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in found]


@cache
def service_model(name: str) -> Any:
    return botocore.session.get_session().get_service_model(name)


def wrong_choices(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Words that are none of those that there are, which botocore leaves to the server."""
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from wrong_choices(member, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for member in value:
            yield from wrong_choices(member, shape.member, where)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where}: {value}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_aws_knows_every_field(path: Path) -> None:
    given = json.loads(path.read_text())
    if path.stem.startswith("policy-"):
        assert given["Version"] == "2012-10-17"
        return
    (operation,) = [at for name, at in OPERATIONS.items() if path.stem.startswith(name)]
    model = service_model(operation[0])
    shape = model.operation_model(operation[1]).input_shape
    report = ParamValidator().validate(given, shape)
    assert not report.has_errors(), report.generate_report()
    assert list(wrong_choices(given, shape, path.stem)) == []


def test_a_field_that_is_misspelt_would_be_found() -> None:
    given = json.loads((FOLDER / "task-api.json").read_text())
    given["containerDefinitions"][0]["readOnlyRootFilesystem"] = True
    shape = service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(given, shape).has_errors()
    given["networkMode"] = "vpc"
    assert list(wrong_choices({"networkMode": "vpc"}, shape, "")) == [".networkMode: vpc"]


every_task = pytest.mark.parametrize("task", files("task-"))


def container_of(task: dict[str, Any]) -> Any:
    (container,) = task["containerDefinitions"]
    return container


def environment_of(container: Any) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["environment"]}


@every_task
def test_containers_may_do_nothing_that_they_need_not(task: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    container = container_of(task)
    assert container["user"] == "10001:10001"
    assert container["readonlyRootFilesystem"] is True
    assert container["linuxParameters"] == {"capabilities": {"drop": ["ALL"]}}
    assert "privileged" not in container
    registry, _, image = container["image"].partition("/")
    assert registry == "REGISTRY"
    assert image.rpartition(":")[2] == project["version"]


@every_task
def test_models_are_fetched_only_where_they_can_be_written(task: dict[str, Any]) -> None:
    container = container_of(task)
    mounted = {each["containerPath"] for each in container["mountPoints"]}
    resolves = container["name"] in {"api", "worker"}
    assert (
        ("/models" in mounted)
        or not resolves
        or (environment_of(container)["AUTO_FETCH"] == "false")
    )


@every_task
def test_settings_are_known_and_secrets_are_not_among_them(task: dict[str, Any]) -> None:
    container = container_of(task)
    open_ones = environment_of(container)
    secret = {each["name"] for each in container["secrets"]}
    assert set(open_ones) - {"TMPDIR"} <= set(settings_named())
    assert secret <= secret_settings()
    assert set(open_ones) & secret_settings() == {"DATABASE_URL"}
    assert ":" not in open_ones["DATABASE_URL"].partition("://")[2].partition("@")[0]
    # Only /data can be written.
    assert open_ones["TMPDIR"] == "/data"
    assert [mount["containerPath"] for mount in container["mountPoints"]] == ["/data"]
    assert {mount["sourceVolume"] for mount in container["mountPoints"]} == {
        volume["name"] for volume in task["volumes"]
    }


def test_the_load_balancer_closes_an_idle_connection_before_the_gateway_does() -> None:
    open_ones = environment_of(container_of(json.loads((FOLDER / "task-api.json").read_text())))
    page = FOLDER.with_suffix(".md").read_text()
    (idle_s,) = re.findall(r"`idle_timeout\.timeout_seconds=(\d+)`", page)
    assert int(open_ones["API_KEEP_ALIVE"]) > int(idle_s)


@every_task
def test_sizes_and_times_are_within_limits(task: dict[str, Any]) -> None:
    container = container_of(task)
    if "FARGATE" in task["requiresCompatibilities"]:
        assert int(task["memory"]) in FARGATE[task["cpu"]]
    assert Settings().worker.stop_period + 10 < container["stopTimeout"] <= 120
    if check := container.get("healthCheck"):
        if "worker.health" in check["command"]:  # it fails while Postgres or Redis is out
            assert check["interval"] * check["retries"] > OUTAGE_TIMEOUT_S
        assert 5 <= check["interval"] <= 300
        assert 2 <= check["timeout"] <= 60
        assert 1 <= check["retries"] <= 10
        assert 0 <= check["startPeriod"] <= 300


@pytest.mark.parametrize("service", files("service-"))
def test_every_service_runs_a_task_that_there_is(service: dict[str, Any]) -> None:
    name = service["taskDefinition"].removeprefix("stenopool-")
    task = json.loads((FOLDER / f"task-{name}.json").read_text())
    assert task["family"] == service["taskDefinition"]
    container = container_of(task)
    for balancer in service.get("loadBalancers", []):
        assert balancer["containerName"] == container["name"]
        ports = {mapping["containerPort"] for mapping in container["portMappings"]}
        assert balancer["containerPort"] in ports


def calls_to_s3() -> set[str]:
    """The client's methods that the storage calls."""
    called = set()
    for node in ast.walk(ast.parse(Path(s3.__file__).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, name = node.func.value, node.func.attr
            if isinstance(of, ast.Attribute) and of.attr in {"_client", "_public"}:
                if name in NAMING:
                    assert isinstance(node.args[0], ast.Constant)
                    name = str(node.args[0].value)
                called.add(name)
    return called


def test_the_role_may_do_what_the_storage_does_and_no_more() -> None:
    policy = json.loads((FOLDER / "policy-task.json").read_text())
    allowed = [action for each in policy["Statement"] for action in each["Action"]]
    needed = set().union(*(ALLOWS[call] for call in calls_to_s3()))
    assert sorted(allowed) == sorted(needed)
    for each in policy["Statement"]:
        of_bucket = all(action.startswith("s3:ListBucket") for action in each["Action"])
        assert each["Resource"] == "arn:aws:s3:::BUCKET" + ("" if of_bucket else "/*")


def test_a_redis_with_tls_is_spoken_to_with_tls() -> None:
    pool = queue.connect("rediss://:s3cret@cache:6379/0?ssl_ca_certs=/ca.pem").connection_pool
    assert issubclass(pool.connection_class, SSLConnection)
    assert pool.connection_kwargs["password"] == "s3cret"
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"


def test_servers_that_know_only_the_old_checksums_are_not_sent_others(tmp_path: Path) -> None:
    settings = StorageSettings(
        storage_backend="s3",
        s3_bucket="bucket",
        s3_endpoint_url="https://storage.example.org",
        s3_addressing_style="path",
        s3_region="auto",
        s3_access_key_id="id",
        s3_secret_access_key=SecretStr("secret"),
        data_dir=tmp_path,
    )
    storage = s3.S3Storage(settings)
    storage.prepare()
    sent: list[tuple[str, set[str]]] = []

    def answer(request: AWSPreparedRequest, **_: Any) -> Any:
        sent.append((request.url, {name.lower() for name in request.headers}))
        body = b"<Result><UploadId>1</UploadId></Result>"
        return AWSResponse(request.url, 200, HTTPHeaders.from_pairs([("ETag", "1")]), Raw(body))

    storage._client.meta.events.register("before-send.s3", answer)
    storage.write_chunk(uuid4(), 0, b"audio")
    recording = uuid4()
    storage.incoming(recording).write_bytes(bytes(s3.PART_BYTES + 1))
    storage.secure(recording)
    parts = [url for url, _ in sent if "partNumber=" in url]
    assert len(parts) == 2
    for _, headers in sent:
        assert not any(name.startswith(("x-amz-checksum", "x-amz-sdk")) for name in headers)
        assert not {"x-amz-trailer", "transfer-encoding", "content-encoding"} & headers


class Raw(io.BytesIO):
    """A body as botocore wants it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()
