"""What the gateway promises to clients that have texts moderated, with the bundled model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
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
from tests.support.gateway import GatewayProcess, children

FOUL = "shut the fuck up"
CLEAN = "thank you for the lovely flowers"

MODULE = "api.processes.moderator_process"


@pytest.fixture(scope="module")
def moderating(gateway: GatewayProcess) -> GatewayProcess:
    """The module's gateway, with its model loaded."""
    ask(gateway, {"text": CLEAN})
    return gateway


@pytest.fixture
def alone(tmp_path: Path, database_url: str, redis_url: str) -> Callable[..., GatewayProcess]:
    """A gateway of this test's own, with settings."""
    return lambda **settings: GatewayProcess(tmp_path, database_url, redis_url, **settings)


def ask(gateway: GatewayProcess, body: object, status: int = 200) -> Any:
    answer = gateway.http.post("/moderation", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def processes(parent: int) -> list[psutil.Process]:
    return children(MODULE, parent)


def pid(gateway: GatewayProcess) -> int:
    assert gateway.process is not None
    return gateway.process.pid


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


def test_texts_are_answered_one_by_one_in_their_order(moderating: GatewayProcess) -> None:
    texts = [CLEAN, FOUL, "😀", CLEAN, f"{CLEAN}, {FOUL}"]
    results = ask(moderating, {"texts": texts})["results"]
    assert [it["label"] == "CLEAN" for it in results] == [True, False, True, True, False]
    assert [bool(it["spans"]) for it in results] == [False, True, False, False, True]


def test_spans_count_code_points_of_the_text_as_it_was_sent(moderating: GatewayProcess) -> None:
    text = f"😀 👨‍👩‍👧 Xin cha\u0300o\u200b 𝄞 {FOUL}"
    (span,) = ask(moderating, {"text": text})["results"][0]["spans"]
    assert text[span["start"] : span["end"]] == span["text"] == "fuck"


def test_the_limits_named_in_the_description_are_taken(moderating: GatewayProcess) -> None:
    texts = [FOUL if index % 100 == 7 else CLEAN for index in range(MAX_TEXTS)]
    results = ask(moderating, {"texts": texts})["results"]
    foul = [index for index, it in enumerate(results) if it["label"] != "CLEAN"]
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
    ],
)
def test_a_wrong_body_is_refused_by_name(
    moderating: GatewayProcess, body: object, status: int, names: list[str]
) -> None:
    content = json.dumps(body).encode()
    answer = moderating.http.post("/moderation", content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    for name in names:
        assert name in answer.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text=hello",
        b'{"text": "a"',
        b'{"text": "\xff\xfe"}',
        '{"text": "a"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"text": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_in_utf_8_is_refused(
    moderating: GatewayProcess, content: bytes
) -> None:
    answer = moderating.http.post("/moderation", content=content)
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed"


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


def test_a_gateway_without_moderation_says_so_and_is_ready(
    alone: Callable[..., GatewayProcess],
) -> None:
    with alone(AI_LOAD_MODELS="false") as gateway:
        assert ask(gateway, {"text": "a"}, 503)["code"] == "moderation_off"
        ready = gateway.http.get("/readyz")
        assert (ready.status_code, ready.json()["parts"]["moderation"]) == (200, "off")
        assert gateway.http.get("/health").json()["status"] == "healthy"
        assert processes(pid(gateway)) == []


def test_a_folder_without_a_model_is_named_and_transcription_goes_on(
    alone: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    folder = tmp_path / "no-model-here"
    folder.mkdir()
    with alone(PHOBERT_ONNX_DIR=str(folder)) as gateway:
        problem = ask(gateway, {"text": "a"}, 503)
        assert problem["code"] == "moderation_unusable"
        assert "no-model-here" in problem["detail"]
        assert str(tmp_path) not in problem["detail"]
        ready = gateway.http.get("/readyz")
        assert ready.status_code == 200
        assert "no-model-here" in ready.json()["parts"]["moderation"]
        health = gateway.http.get("/health").json()
        assert health["status"] == "degraded"
        listed = gateway.http.get("/api/v1/models").json()["moderation"]
        assert (listed["model"], "no-model-here" in listed["state"]) == (None, True)


def test_a_corrupt_model_is_named(alone: Callable[..., GatewayProcess], tmp_path: Path) -> None:
    source = ModerationSettings().phobert_onnx_dir
    broken = tmp_path / "broken-model"
    broken.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        damaged = content[: len(content) // 2] if file.suffix == ".onnx" else content
        (broken / file.name).write_bytes(damaged)
    with alone(PHOBERT_ONNX_DIR=str(broken)) as gateway:
        problem = ask(gateway, {"text": "a"}, 503)
        assert problem["code"] == "moderation_unusable"
        assert "broken-model" in problem["detail"]
        assert str(tmp_path) not in problem["detail"]


# --- its process ----------------------------------------------------------------------------------


def test_a_process_that_died_is_replaced(moderating: GatewayProcess) -> None:
    (victim,) = processes(pid(moderating))
    victim.kill()
    assert ask(moderating, {"text": FOUL})["results"][0]["label"] != "CLEAN"
    (successor,) = processes(pid(moderating))
    assert successor.pid != victim.pid


def test_a_call_outlives_the_death_of_the_process(moderating: GatewayProcess) -> None:
    texts = [f"{CLEAN} {index}. " * 20 for index in range(MAX_TEXTS)]
    (victim,) = processes(pid(moderating))
    before = victim.cpu_times().user
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, moderating, {"texts": texts})
        wait_for(lambda: victim.cpu_times().user > before)
        victim.kill()
        assert len(asked.result()["results"]) == MAX_TEXTS


def test_the_process_ends_with_its_gateway_even_by_force(
    alone: Callable[..., GatewayProcess],
) -> None:
    with alone() as gateway:
        ask(gateway, {"text": CLEAN})
        (moderation,) = processes(pid(gateway))
        moderation.suspend()  # so that it cannot notice by itself
        assert gateway.process is not None
        gateway.process.kill()
        gateway.process.wait()
        wait_for(lambda: not moderation.is_running() or moderation.status() == psutil.STATUS_ZOMBIE)


def test_one_text_does_not_wait_for_a_thousand(moderating: GatewayProcess) -> None:
    texts = [f"{CLEAN} {index}. " * 20 for index in range(MAX_TEXTS)]
    ended: list[str] = []

    def run(name: str, body: object) -> None:
        ask(moderating, body)
        ended.append(name)

    (moderation,) = processes(pid(moderating))
    before = moderation.cpu_times().user
    many = threading.Thread(target=run, args=("many", {"texts": texts}))
    many.start()
    wait_for(lambda: moderation.cpu_times().user > before)
    run("one", {"text": FOUL})
    many.join()
    assert ended == ["one", "many"]


def test_what_no_client_waits_for_is_not_moderated(moderating: GatewayProcess) -> None:
    texts = [f"{CLEAN} {index}. " * 50 for index in range(MAX_TEXTS)]
    with pytest.raises(httpx.ReadTimeout):
        moderating.http.post("/moderation", json={"texts": texts}, timeout=0.2)
    with pytest.raises(httpx.ReadTimeout):
        moderating.http.post("/moderation", json={"texts": texts}, timeout=0.2)
    wait_for(lambda: moderating.log_file.read_text().count("POST /moderation 499") >= 2)
    assert ask(moderating, {"text": CLEAN})


def mine() -> list[psutil.Process]:
    return processes(psutil.Process().pid)


async def appears(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


def test_starting_does_not_wait_for_the_model() -> None:
    async def run() -> None:
        moderation = ModerationProcess(ModerationSettings())
        moderation.start()
        assert moderation.state == LOADING
        _, (finding,) = await moderation.moderate([FOUL])
        assert finding.label is not Label.CLEAN
        assert moderation.state == OK
        await moderation.close()

    asyncio.run(run())
    assert mine() == []


def test_texts_that_kill_the_process_twice_are_refused_and_others_are_served() -> None:
    async def run() -> None:
        moderation = ModerationProcess(ModerationSettings())
        moderation.start()
        await moderation.moderate([CLEAN])
        (first,) = mine()
        first.suspend()
        guilty = asyncio.create_task(moderation.moderate([f"{CLEAN} " * 50_000]))  # takes seconds
        innocent = asyncio.create_task(moderation.moderate([FOUL]))
        await asyncio.sleep(0)
        first.kill()
        (second,) = await appears(lambda: moderation.state == LOADING and mine())
        await appears(lambda: moderation.state == OK)
        second.kill()
        with pytest.raises(ModerationFailed, match="-9"):
            await guilty
        _, (finding,) = await innocent
        assert finding.label is not Label.CLEAN
        await moderation.close()

    asyncio.run(run())


def test_a_process_that_hangs_is_replaced() -> None:
    async def run() -> None:
        moderation = ModerationProcess(ModerationSettings())
        moderation.start()
        await moderation.moderate([CLEAN])
        mine()[0].suspend()
        moderation._slice_s = 0.2
        with pytest.raises(ModerationFailed, match="did not finish in time"):
            await moderation.moderate([CLEAN])
        moderation._slice_s = 60
        assert await moderation.moderate([CLEAN])
        await moderation.close()

    asyncio.run(run())


def test_a_crowd_is_told_to_come_again() -> None:
    async def run() -> None:
        moderation = ModerationProcess(ModerationSettings())
        moderation.start()
        await moderation.moderate([CLEAN])
        mine()[0].suspend()
        crowd = [asyncio.create_task(moderation.moderate([CLEAN])) for _ in range(MAX_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await moderation.moderate([CLEAN])
        mine()[0].resume()
        assert len(await asyncio.gather(*crowd)) == MAX_CALLS
        assert await moderation.moderate([CLEAN])
        await moderation.close()

    asyncio.run(run())
