"""What the gateway promises to clients that have texts moderated, with the bundled model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.moderation.schemas import MAX_LETTERS, MAX_TEXTS
from api.processes.child import LOADING, OK
from api.processes.moderator import MAX_CALLS, ModerationProcess
from common.domain.moderation import Label
from common.errors import Busy, ModerationFailed
from common.settings import ModerationSettings
from tests.support.gateway import GatewayProcess, StartGateway, children
from tests.support.service import wait_until

FOUL = "shut the fuck up"
CLEAN = "thank you for the lovely flowers"

MANY = [f"{CLEAN} {index}. " * 20 for index in range(MAX_TEXTS)]
"""Texts that take seconds."""

MODULE = "api.processes.moderator_process"


@pytest.fixture(scope="module")
def moderating(gateway: GatewayProcess) -> GatewayProcess:
    """The module's gateway, with its model loaded."""
    ask(gateway, {"text": CLEAN})
    return gateway


def ask(gateway: GatewayProcess, body: object, status: int = 200) -> Any:
    answer = gateway.http.post("/moderation", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def processes(gateway: GatewayProcess) -> list[psutil.Process]:
    return children(MODULE, gateway.process.pid)


def wait_for_work(process: psutil.Process, before: float) -> None:
    """Wait for a process to have used more than ``before`` seconds of the processor."""
    wait_until(lambda: process.cpu_times().user > before, "its work")


# --- what it says ---------------------------------------------------------------------------------


def test_a_text_is_moderated_and_what_gave_offence_is_named(moderating: GatewayProcess) -> None:
    answer = ask(moderating, {"text": FOUL})
    (result,) = answer["results"]
    assert result["label"] in {"OFFENSIVE", "HATE"}
    assert result["score"] == result["scores"][result["label"]]
    assert set(result["scores"]) == {"CLEAN", "OFFENSIVE", "HATE"}
    assert sum(result["scores"].values()) == pytest.approx(1, abs=0.001)
    assert [span["text"] for span in result["spans"]] == ["fuck"]
    assert set(result["spans"][0]) == {"start", "end", "text", "label", "source"}
    assert set(answer) == {"results", "model", "threshold"}
    assert set(answer["threshold"]) == {"OFFENSIVE", "HATE"}
    assert answer["model"]


def test_spans_count_code_points_of_the_text_as_it_was_sent(moderating: GatewayProcess) -> None:
    text = f"😀 👨‍👩‍👧 Xin cha\u0300o\u200b 𝄞 {FOUL}"
    (span,) = ask(moderating, {"text": text})["results"][0]["spans"]
    assert text[span["start"] : span["end"]] == span["text"] == "fuck"


def test_as_many_texts_as_documented_are_moderated_in_their_order(
    moderating: GatewayProcess,
) -> None:
    texts = [FOUL if index % 100 == 7 else CLEAN for index in range(MAX_TEXTS)]
    results = ask(moderating, {"texts": texts})["results"]
    foul = [index for index, it in enumerate(results) if it["label"] != "CLEAN"]
    assert foul == [index for index, it in enumerate(results) if it["spans"]]
    assert foul == list(range(7, MAX_TEXTS, 100))


def test_the_longest_text_is_moderated_to_its_end(moderating: GatewayProcess) -> None:
    text = f"{CLEAN}. " * (MAX_LETTERS // len(CLEAN))
    text = f"{text[: MAX_LETTERS - len(FOUL) - 1]} {FOUL}"
    (result,) = ask(moderating, {"text": text})["results"]
    assert result["label"] != "CLEAN"
    assert text[result["spans"][-1]["start"] :].startswith("fuck")


def test_the_model_is_listed(moderating: GatewayProcess) -> None:
    listed = moderating.http.get("/api/v1/models").json()["moderation"]
    assert listed["state"] == "ok"
    assert listed["model"] == ask(moderating, {"text": CLEAN})["model"]
    assert len(listed["sha256"]) == 64


def test_the_description_has_an_example_and_the_limits(gateway: GatewayProcess) -> None:
    route = gateway.http.get("/openapi.json").json()["paths"]["/moderation"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["texts"]["maxItems"] == MAX_TEXTS
    assert body["properties"]["text"]["maxLength"] == MAX_LETTERS
    assert body["examples"]
    assert {"200", "400", "413", "422", "503"} <= set(route["responses"])


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({}, 422, ["text"]),
        ({"text": "a", "texts": ["a"]}, 422, ["text", "texts"]),
        ({"text": ""}, 422, ["text"]),
        ({"text": " \n"}, 422, ["text"]),
        ({"text": None}, 422, ["text", "null"]),
        ({"text": 5}, 422, ["text", "5"]),
        ({"texts": "a"}, 422, ["texts"]),
        ({"texts": []}, 422, ["texts", "1000"]),
        ({"texts": ["a", "b", "c", ""]}, 422, ["texts[3]"]),
        ({"texts": ["a", ["b"]]}, 422, ["texts[1]", "a list"]),
        ({"texts": ["a"] * 1_001}, 413, ["texts", "1000", "1001"]),
        ({"texts": ["a", "b" * 50_001]}, 413, ["texts[1]", "50000", "50001"]),
        ({"text": "x" * 1_000_000}, 413, ["text", "50000", "1000000"]),
        ({"text": "a", "lang": "vi"}, 422, ["lang"]),
        ({"text": "a", "\ud800": 1}, 422, ["ud800"]),
        ({"text": "a\ud800b"}, 422, ["text", "surrogate", "1"]),
        (["a"], 400, ["object"]),
        ("a", 400, ["object"]),
        (b"", 400, []),
        (b"text=hello", 400, []),
        (b'{"text": "a"', 400, []),
        (b'{"text": "\xff\xfe"}', 400, []),
        ('{"text": "a"}'.encode("utf-16"), 400, []),
        (b"[" * 100_000, 400, []),
        (b'{"text": ' + b"9" * 10_000 + b"}", 400, []),
    ],
)
def test_a_wrong_body_is_refused_by_name(
    moderating: GatewayProcess, body: object, status: int, names: list[str]
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = moderating.http.post("/moderation", content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert status != 400 or answer.json()["code"] == "malformed"
    for name in names:
        assert name in answer.json()["detail"]


def test_a_body_too_large_is_refused_before_all_of_it_came(moderating: GatewayProcess) -> None:
    announced = moderating.http.post("/moderation", content=b" " * 4_000_001)
    assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
    assert announced.json()["field"] == "body"

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 100_000

    try:
        answer = moderating.http.post("/moderation", content=endless())
    except httpx.WriteError:  # the line was cut while it was sending
        return
    assert answer.status_code == 413


# --- without a model ------------------------------------------------------------------------------


def test_a_gateway_without_moderation_says_so_and_is_ready(alone: StartGateway) -> None:
    gateway = alone(AI_LOAD_MODELS="false")
    assert ask(gateway, {"text": "a"}, 503)["code"] == "moderation_off"
    ready = gateway.http.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["moderation"]) == (200, "off")
    assert gateway.http.get("/health").json()["status"] == "healthy"
    assert processes(gateway) == []


@pytest.mark.parametrize("corrupt", [False, True])
def test_a_model_that_is_missing_or_corrupt_is_named_and_the_gateway_is_ready(
    alone: StartGateway, tmp_path: Path, corrupt: bool
) -> None:
    folder = tmp_path / "no-model-here"
    folder.mkdir()
    for file in ModerationSettings().phobert_onnx_dir.iterdir() if corrupt else ():
        content = file.read_bytes()
        damaged = content[: len(content) // 2] if file.suffix == ".onnx" else content
        (folder / file.name).write_bytes(damaged)
    gateway = alone(PHOBERT_ONNX_DIR=str(folder))
    problem = ask(gateway, {"text": "a"}, 503)
    assert problem["code"] == "moderation_unusable"
    assert "no-model-here" in problem["detail"]
    assert str(tmp_path) not in problem["detail"]
    ready = gateway.http.get("/readyz")
    assert ready.status_code == 200
    assert "no-model-here" in ready.json()["parts"]["moderation"]
    assert gateway.http.get("/health").json()["status"] == "degraded"
    listed = gateway.http.get("/api/v1/models").json()["moderation"]
    assert (listed["model"], "no-model-here" in listed["state"]) == (None, True)


# --- its process ----------------------------------------------------------------------------------


def test_a_process_that_died_is_replaced_and_a_call_outlives_it(
    moderating: GatewayProcess, pool: ThreadPoolExecutor
) -> None:
    (first,) = processes(moderating)
    first.kill()
    assert ask(moderating, {"text": FOUL})["results"][0]["label"] != "CLEAN"
    (second,) = processes(moderating)
    assert second.pid != first.pid

    before = second.cpu_times().user
    asked = pool.submit(ask, moderating, {"texts": MANY})
    wait_for_work(second, before)
    second.kill()
    assert len(asked.result()["results"]) == len(MANY)


def test_the_process_ends_with_its_gateway_even_by_force(alone: StartGateway) -> None:
    gateway = alone()
    ask(gateway, {"text": CLEAN})
    (moderation,) = processes(gateway)
    moderation.suspend()  # so that it cannot notice by itself
    gateway.process.kill()
    gateway.process.wait()
    wait_until(
        lambda: not moderation.is_running() or moderation.status() == psutil.STATUS_ZOMBIE,
        "its end",
    )


def test_one_text_does_not_wait_for_many(
    moderating: GatewayProcess, pool: ThreadPoolExecutor
) -> None:
    (moderation,) = processes(moderating)
    before = moderation.cpu_times().user
    many = pool.submit(ask, moderating, {"texts": MANY})
    wait_for_work(moderation, before)
    ask(moderating, {"text": FOUL})
    assert not many.done()
    assert len(many.result()["results"]) == len(MANY)


def test_texts_for_which_no_client_waits_are_not_moderated(moderating: GatewayProcess) -> None:
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            moderating.http.post("/moderation", json={"texts": MANY}, timeout=0.2)
    wait_until(
        lambda: moderating.log_file.read_text().count("POST /moderation 499") >= 2, "the log"
    )
    assert ask(moderating, {"text": CLEAN})


def own_processes() -> list[psutil.Process]:
    return children(MODULE)


@pytest.fixture
async def moderation() -> AsyncIterator[ModerationProcess]:
    """A process of this test's own, which has loaded its model."""
    moderation = ModerationProcess(ModerationSettings())
    moderation.start()
    assert moderation.state == LOADING
    _, (finding,) = await moderation.moderate([FOUL])
    assert finding.label is not Label.CLEAN
    assert moderation.state == OK
    yield moderation
    await moderation.close()
    assert own_processes() == []


async def appears(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


@pytest.mark.anyio
async def test_texts_that_kill_the_process_twice_are_refused_and_others_are_served(
    moderation: ModerationProcess,
) -> None:
    (first,) = own_processes()
    first.suspend()
    takes_seconds = [f"{CLEAN} " * 50_000]
    guilty = asyncio.create_task(moderation.moderate(takes_seconds))
    innocent = asyncio.create_task(moderation.moderate([FOUL]))
    await asyncio.sleep(0)
    first.kill()
    (second,) = await appears(lambda: moderation.state == LOADING and own_processes())
    await appears(lambda: moderation.state == OK)
    second.kill()
    with pytest.raises(ModerationFailed, match="-9"):
        await guilty
    _, (finding,) = await innocent
    assert finding.label is not Label.CLEAN


@pytest.mark.anyio
async def test_calls_beyond_the_limit_are_refused_and_a_process_that_hangs_is_replaced(
    moderation: ModerationProcess,
) -> None:
    own_processes()[0].suspend()
    calls = [asyncio.create_task(moderation.moderate([CLEAN])) for _ in range(MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await moderation.moderate([CLEAN])
    own_processes()[0].resume()
    assert len(await asyncio.gather(*calls)) == MAX_CALLS
    assert await moderation.moderate([CLEAN])

    own_processes()[0].suspend()
    moderation._slice_s = 0.2
    with pytest.raises(ModerationFailed, match="did not finish in time"):
        await moderation.moderate([CLEAN])
    moderation._slice_s = 60
    assert await moderation.moderate([CLEAN])
