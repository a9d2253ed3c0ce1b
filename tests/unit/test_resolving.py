from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.jobs.resolving import Resolver, form_options
from api.jobs.schemas import UploadOptions
from common.db.jobs import NewJob
from common.domain.job import Priority
from common.domain.models import ModelName
from common.domain.request import Cutting
from common.errors import (
    BadInput,
    ModelNotInstalled,
    ModelUnusable,
    OptionConflict,
    OutOfRange,
    UnknownOption,
)
from common.net.egress import Egress
from common.settings import AsrSettings, ChunkSettings, ModerationSettings, Settings
from common.weights.manifest import (
    SHERPA_ONNX,
    WHISPER_CPP,
    FileSpec,
    HubFiles,
    Manifest,
    WeightsSpec,
)
from common.weights.store import WeightsStore


def spec(model: str, language: str) -> WeightsSpec:
    return WeightsSpec(WHISPER_CPP, model, (language,), "MIT", (FileSpec(f"ggml-{model}.bin"),), ())


def network(model: str, *languages: str) -> WeightsSpec:
    return WeightsSpec(SHERPA_ONNX, model, languages, "MIT", (FileSpec("model.onnx"),), ())


MANIFEST = Manifest(
    (spec("base", "*"), spec("pho", "vi"), network("vi-68m", "vi"), network("sense", "en", "zh"))
)


@pytest.mark.parametrize(
    "name", [name for name, field in UploadOptions.model_fields.items() if field.default is None]
)
def test_an_option_that_is_null_is_not_given(name: str) -> None:
    assert UploadOptions.model_validate({name: None}) == UploadOptions.model_validate({})


@pytest.fixture
def resolver(tmp_path: Path) -> Resolver:
    """Over an installation that prefers whisper.cpp and Vietnamese, and has no weights yet."""
    settings = Settings(
        asr=AsrSettings(default_engine="whisper.cpp", default_model="base", default_language="vi"),
        chunk=ChunkSettings(duration=20, overlap=4),
        moderation=ModerationSettings(ai_load_models=True),
    )
    return Resolver(settings, WeightsStore(tmp_path, MANIFEST), Egress())


@pytest.fixture
def unmoderated(tmp_path: Path) -> Resolver:
    """Over an installation with AI_LOAD_MODELS=false."""
    settings = Settings(moderation=ModerationSettings(ai_load_models=False))
    return Resolver(settings, WeightsStore(tmp_path, MANIFEST), Egress())


def resolve(resolver: Resolver, **sent: str) -> Any:
    return asyncio.run(resolver.resolve(uuid4(), form_options(sent)))


def test_what_is_not_sent_comes_from_the_settings(resolver: Resolver) -> None:
    job = resolve(resolver, language="", model=" ")
    assert (job.engine, job.model, job.language) == ("whisper.cpp", "base", "vi")
    assert job.priority is Priority.NORMAL
    assert job.options.cutting == Cutting(window_ms=20_000, overlap_ms=4_000)


def test_names_are_taken_in_any_case(resolver: Resolver) -> None:
    job = resolve(resolver, language=" EN ", priority="High", engine="Whisper.CPP")
    assert (job.language, job.priority, job.engine) == ("en", Priority.HIGH, "whisper.cpp")


def test_a_default_overlap_shrinks_with_the_window(resolver: Resolver) -> None:
    job = resolve(resolver, chunk_duration="8")
    assert (job.options.cutting.window_ms, job.options.cutting.overlap_ms) == (8_000, 2_000)


def test_an_overlap_that_was_asked_for_does_not_shrink_silently(resolver: Resolver) -> None:
    with pytest.raises(OutOfRange, match="chunk_overlap"):
        resolve(resolver, chunk_duration="8", chunk_overlap="3")


def test_weights_that_know_one_language_are_not_asked_for_another(resolver: Resolver) -> None:
    assert resolve(resolver, model="pho").language == "vi"
    assert resolve(resolver, model="pho", language="auto").language == "auto"
    with pytest.raises(UnknownOption, match="language"):
        resolve(resolver, model="pho", language="en")


def test_a_network_of_one_language_needs_no_detection(resolver: Resolver) -> None:
    named = {"engine": "sherpa-onnx", "model": "vi-68m"}
    assert resolve(resolver, **named, language="auto").language == "vi"
    with pytest.raises(OptionConflict, match="language=auto needs an engine that detects"):
        resolve(resolver, engine="sherpa-onnx", model="sense", language="auto")


def test_several_languages_are_one_job_whose_main_language_is_detected(resolver: Resolver) -> None:
    job = resolve(resolver, languages=" VI, en,vi ")
    assert (job.language, job.options.languages, job.options.models) == ("auto", ("vi", "en"), {})
    assert resolve(resolver, languages="vi,en", language="auto").options == job.options
    one = resolve(resolver, languages="en")
    assert (one.language, one.options) == ("en", resolve(resolver, language="en").options)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ({"languages": "vi,xx"}, "languages must be one of af, .*got 'xx'"),
        ({"languages": "vi,auto"}, "languages must be one of af, .*got 'auto'"),
        ({"languages": "vi,,en"}, "languages must be one of af, .*got ''"),
        ({"languages": "vi,en", "language": "vi"}, "languages=vi,en needs language=auto"),
        ({"languages": "vi,en", "model": "pho"}, "languages must be one of vi; got 'en'"),
        (
            {"languages": "vi,en", "engine": "sherpa-onnx", "model": "sense"},
            "languages must be one of en, zh; got 'vi'",
        ),
        (
            {"languages": "af,am,ar,as,az,ba,be,bg,bn"},
            "languages must be at most 8 codes; got 'af,am,ar,as,az,ba,be,bg,bn'",
        ),
        (
            {"languages": "en,zh", "engine": "sherpa-onnx", "model": "sense", "task": "translate"},
            "task=translate needs a Whisper engine",
        ),
    ],
)
def test_wrong_languages_are_rejected_with_a_reason(
    resolver: Resolver, sent: dict[str, str], complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        resolve(resolver, **sent)


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "translate"), ("temperature", "0"), ("initial_prompt", "Hà Nội")],
)
def test_options_of_whisper_alone_are_rejected_elsewhere(
    resolver: Resolver, field: str, value: str
) -> None:
    assert resolve(resolver, **{field: value})
    with pytest.raises(OptionConflict, match=f"{field}={value}.* needs a Whisper engine"):
        resolve(resolver, engine="sherpa-onnx", model="vi-68m", **{field: value})
    hotwords = {"hotwords": "Hà Nội", "beam_size": "4"}
    assert resolve(resolver, engine="sherpa-onnx", model="vi-68m", **hotwords)


def test_only_networks_of_any_length_take_long_windows(resolver: Resolver) -> None:
    named = {"engine": "sherpa-onnx", "model": "vi-68m"}
    assert resolve(resolver, **named, chunk_duration="60").options.cutting.window_ms == 60_000
    with pytest.raises(OutOfRange, match="chunk_duration must be at most 30 for Whisper; got 31"):
        resolve(resolver, chunk_duration="31")


def test_own_weights_that_are_unusable_are_rejected_with_the_reason(
    resolver: Resolver, tmp_path: Path
) -> None:
    (tmp_path / "half").mkdir()
    for name in ("encoder.onnx", "tokens.txt"):
        (tmp_path / "half" / name).write_text("")
    with pytest.raises(ModelUnusable, match=r"half lacks decoder\.onnx, joiner\.onnx"):
        resolve(resolver, engine="sherpa-onnx", model="half")


def test_a_gateway_with_weights_rejects_missing_ones(resolver: Resolver, tmp_path: Path) -> None:
    assert resolve(resolver, model="pho").model == "pho"  # it has none: the workers are elsewhere
    (tmp_path / "ggml-base.bin").write_bytes(b"weights")
    assert resolve(resolver, model="base").model == "base"
    with pytest.raises(ModelNotInstalled, match="steno models pull pho"):
        resolve(resolver, model="pho")


BASE = Settings(asr=AsrSettings(default_engine="whisper.cpp", default_model="base"))


@pytest.mark.parametrize(
    ("of_workers", "missing"),
    [
        (None, {"pho"}),
        ({("whisper.cpp", "pho")}, set()),
        ({("faster-whisper", "pho")}, {"pho"}),
        (set(), {"pho"}),
    ],
)
def test_what_living_workers_have_decides_over_what_is_on_this_machine(
    tmp_path: Path, of_workers: set[tuple[str, str]] | None, missing: set[str]
) -> None:
    (tmp_path / "ggml-base.bin").write_bytes(b"weights")
    resolver = Resolver(BASE, WeightsStore(tmp_path, MANIFEST), Egress(), lambda: of_workers)
    usable = set(resolver.installed())
    assert usable == {"base", "pho"} - missing
    for model in missing:
        with pytest.raises(ModelNotInstalled):
            resolve(resolver, model=model)
    for model in usable:
        assert resolve(resolver, model=model, language="vi").model == model


def test_workers_without_any_weights_are_no_workers_apart(tmp_path: Path) -> None:
    resolver = Resolver(BASE, WeightsStore(tmp_path, MANIFEST), Egress(), set)
    with pytest.raises(ModelNotInstalled, match=r"steno models pull base --engine whisper\.cpp"):
        resolver.check_defaults()
    assert resolver.installed() == []


def test_weights_for_streams_are_none_for_jobs(resolver: Resolver, tmp_path: Path) -> None:
    (tmp_path / "zipformer-live").mkdir()
    for name in ("model.onnx", "tokens.txt"):
        (tmp_path / "zipformer-live" / name).write_bytes(b"weights")
    with pytest.raises(UnknownOption, match="engine must be one of"):
        resolve(resolver, model="live", engine="zipformer")
    with pytest.raises(UnknownOption, match="model must be one of base, pho"):
        resolve(resolver, model="live")
    assert resolve(resolver, model="pho").model == "pho", "the workers may have it"


def test_a_persons_own_weights_are_known_by_their_name(resolver: Resolver, tmp_path: Path) -> None:
    (tmp_path / "ggml-mine.bin").write_bytes(b"weights")
    assert resolve(resolver, model="mine").model == "mine"


@pytest.mark.parametrize("model", ["../base", "base/..", "BASE", "x" * 5_000])
def test_a_model_is_a_known_name_and_nothing_else(resolver: Resolver, model: str) -> None:
    with pytest.raises(UnknownOption, match="model must be one of base, pho"):
        resolve(resolver, model=model)


@pytest.mark.parametrize("name", ["diarize", "callback_url", "__class__"])
def test_an_unknown_option_is_rejected_by_name(resolver: Resolver, name: str) -> None:
    with pytest.raises(BadInput, match=name):
        resolve(resolver, **{name: "1"})


def test_jobs_are_moderated_unless_they_or_the_installation_opt_out(
    resolver: Resolver, unmoderated: Resolver
) -> None:
    assert resolve(resolver).options.moderation
    assert resolve(resolver, moderation="true").options.moderation
    assert not resolve(resolver, moderation="false").options.moderation
    for sent in ({}, {"moderation": "false"}):
        job = resolve(unmoderated, engine="whisper.cpp", model="base", **sent)
        assert not job.options.moderation


def test_words_are_masked_on_request(resolver: Resolver) -> None:
    assert not resolve(resolver).options.filter_profanity
    assert resolve(resolver, filter_profanity="true").options.filter_profanity


def test_missing_moderation_is_rejected_by_name(resolver: Resolver, unmoderated: Resolver) -> None:
    whisper = {"engine": "whisper.cpp", "model": "base"}
    for name in ("moderation", "filter_profanity"):
        with pytest.raises(OptionConflict, match=rf"{name}=true needs .*AI_LOAD_MODELS=false"):
            resolve(unmoderated, **{name: "true"}, **whisper)
    with pytest.raises(OptionConflict, match="filter_profanity=true needs moderation=true"):
        resolve(resolver, filter_profanity="true", moderation="false")
    with pytest.raises(BadInput, match="moderation"):
        resolve(resolver, moderation="perhaps")


def test_a_dns_that_is_slow_to_answer_holds_up_no_thread_that_others_need(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can have its names looked up as slowly as it likes."""
    monkeypatch.setattr("common.net.egress.LOOKUP_S", 60)
    answer = threading.Event()

    def slow(_host: str, _port: int) -> list[str]:
        answer.wait(60)
        return ["93.184.216.34"]

    async def run() -> None:
        resolver.egress = Egress(resolve=slow)
        options = form_options({"webhook_url": "https://slow.example/"})
        jobs = [asyncio.create_task(resolver.resolve(uuid4(), options)) for _ in range(50)]
        await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.to_thread(time.monotonic)
        assert not any(job.done() for job in jobs)
        answer.set()
        assert all(job.webhook_url for job in await asyncio.gather(*jobs))

    asyncio.run(run())


# --- models that are chosen, and fetched ----------------------------------------------------------

PUBLISHED = Manifest(
    tuple(
        replace(each, sources=(HubFiles("someone/something", "main"),))
        for each in (*MANIFEST.specs, spec("small", "*"))
    )
)
VI_68M, PHO, SMALL, BASE_CPP = (
    ModelName(engine, model)
    for engine, model in (
        ("sherpa-onnx", "vi-68m"),
        ("whisper.cpp", "pho"),
        ("whisper.cpp", "small"),
        ("whisper.cpp", "base"),
    )
)
Made = Callable[..., Resolver]


@pytest.fixture
def choosing(tmp_path: Path) -> Made:
    """Makes a resolver of `auto`: with these models installed, and these failures to fetch some."""

    def make(
        *here: ModelName, failed: Sequence[ModelName] = (), auto_fetch: bool = True
    ) -> Resolver:
        asr = AsrSettings(
            default_model="auto",
            default_language="vi",
            model_for=f"vi = {VI_68M}, {PHO}, {BASE_CPP}; * = {SMALL}, {BASE_CPP}",
            auto_fetch=auto_fetch,
        )
        pairs = {(name.engine, name.model) for name in here}
        failures = {(name.engine, name.model) for name in failed}
        store = WeightsStore(tmp_path, PUBLISHED)
        return Resolver(
            Settings(asr=asr), store, Egress(), lambda: pairs, failed_fetches=lambda: failures
        )

    return make


def chosen(job: NewJob) -> tuple[str, bool]:
    return f"{job.engine}/{job.model}", job.options.fetch_model


def test_the_best_model_of_a_language_is_chosen(choosing: Made) -> None:
    resolver = choosing(VI_68M, BASE_CPP)
    job = resolve(resolver)
    assert chosen(job) == ("sherpa-onnx/vi-68m", False)
    assert job.options.models == {"vi": (VI_68M, PHO, BASE_CPP)}
    assert chosen(resolve(resolver, language="en", model="Auto")) == ("whisper.cpp/small", True)
    assert resolver.default() == VI_68M
    asyncio.run(resolver.check_names(form_options({"model": "AUTO"})))


def test_a_better_model_that_is_published_is_fetched(choosing: Made) -> None:
    assert chosen(resolve(choosing(BASE_CPP))) == ("sherpa-onnx/vi-68m", True)
    assert chosen(resolve(choosing(BASE_CPP), language="en")) == ("whisper.cpp/small", True)


def test_a_model_that_could_not_be_fetched_lately_is_not_waited_for(choosing: Made) -> None:
    job = resolve(choosing(BASE_CPP, failed=[VI_68M, PHO]))
    assert chosen(job) == ("whisper.cpp/base", False)
    assert job.options.models["vi"][0] == VI_68M
    nothing_else = choosing(failed=[VI_68M, PHO, BASE_CPP])
    assert chosen(resolve(nothing_else)) == ("sherpa-onnx/vi-68m", True)


def test_each_of_several_languages_has_its_best_model(choosing: Made) -> None:
    job = resolve(choosing(VI_68M, SMALL), languages="vi,en")
    assert set(job.options.models) == {"vi", "en", "*"}
    assert job.options.models["vi"][0] == VI_68M
    assert not job.options.fetch_model
    assert resolve(choosing(VI_68M), languages="vi,en").options.fetch_model
    translated = resolve(choosing(VI_68M, SMALL), languages="vi,en", task="translate")
    assert translated.options.models["vi"] == translated.options.models["*"]
    assert VI_68M not in translated.options.models["vi"]
    with pytest.raises(ModelNotInstalled, match="pull small"):
        resolve(choosing(VI_68M, auto_fetch=False), languages="vi,en")


def test_the_languages_of_a_network_are_told_apart_by_a_model_that_detects_them(
    choosing: Made,
) -> None:
    named = {"engine": "sherpa-onnx", "model": "sense", "languages": "en,zh"}
    sense = (ModelName("sherpa-onnx", "sense"),)
    job = resolve(choosing(*sense, SMALL), **named)
    assert (job.language, job.options.fetch_model) == ("auto", False)
    detectors = job.options.models["*"]
    assert job.options.models == {"en": sense, "zh": sense, "*": detectors}
    assert SMALL in detectors
    assert resolve(choosing(*sense), **named).options.fetch_model
    with pytest.raises(OutOfRange, match="chunk_duration must be at most 30 for Whisper; got 31"):
        resolve(choosing(*sense, SMALL), **named, chunk_duration="31")


def test_without_auto_fetch_the_best_installed_one_is_chosen(choosing: Made) -> None:
    assert chosen(resolve(choosing(PHO, BASE_CPP, auto_fetch=False))) == ("whisper.cpp/pho", False)
    with pytest.raises(ModelNotInstalled, match="steno models pull vi-68m"):
        resolve(choosing(SMALL, auto_fetch=False))


def test_a_language_is_detected_by_the_model_for_all_others(choosing: Made) -> None:
    job = resolve(choosing(VI_68M, SMALL), language="auto")
    assert chosen(job) == ("whisper.cpp/small", False)
    assert job.options.models.keys() == {"vi", "*"}
    assert chosen(resolve(choosing(SMALL), language="auto")) == ("whisper.cpp/small", False)
    assert chosen(resolve(choosing(VI_68M), language="auto")) == ("whisper.cpp/small", True)


def test_an_engine_or_an_option_of_whisper_narrows_the_choice(choosing: Made) -> None:
    resolver = choosing(VI_68M, PHO, BASE_CPP)
    assert chosen(resolve(resolver, engine="whisper.cpp")) == ("whisper.cpp/pho", False)
    # A model for Vietnamese alone was trained to transcribe.
    used = {"temperature": "whisper.cpp/pho", "initial_prompt": "whisper.cpp/pho"}
    used["task"] = "whisper.cpp/small"
    values = {"task": "translate", "temperature": "0.2", "initial_prompt": "a"}
    for field, value in values.items():
        assert chosen(resolve(resolver, **{field: value}))[0] == used[field]
        with pytest.raises(OptionConflict, match=f"{field}={value} needs a Whisper engine"):
            resolve(resolver, engine="sherpa-onnx", **{field: value})
    with pytest.raises(UnknownOption, match=r"engine must be one of whisper\.cpp, sherpa-onnx;"):
        resolve(resolver, engine="faster-whisper")
    with pytest.raises(
        UnknownOption, match=r"engine must be one of whisper\.cpp; got 'sherpa-onnx'"
    ):
        resolve(resolver, engine="sherpa-onnx", language="auto")


def test_a_named_model_that_is_published_is_fetched(choosing: Made) -> None:
    job = resolve(choosing(BASE_CPP), engine="whisper.cpp", model="small")
    assert chosen(job) == ("whisper.cpp/small", True)
    assert job.options.models == {"*": (SMALL,)}
    job = resolve(choosing(BASE_CPP), engine="whisper.cpp", model="base")
    assert (chosen(job), job.options.models) == (("whisper.cpp/base", False), {})
    with pytest.raises(ModelNotInstalled, match="steno models pull small"):
        resolve(choosing(BASE_CPP, auto_fetch=False), engine="whisper.cpp", model="small")
