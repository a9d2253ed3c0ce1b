"""What the address of a chunk's text covers (worker.steps.audio)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from common.asr.engine import DecodingOptions
from common.db.tables import Job, Transcription
from common.domain.models import ANY_LANGUAGE, ChosenModel, ModelName
from common.domain.request import Decoding, Options
from worker.steps.audio import ADAPTER_REVISION, decoding_identity

OPTIONS = Options(decoding=Decoding(hotwords="Steno"))


def identity(models: dict[str, ChosenModel] | None = None, language: str = "en") -> dict[str, Any]:
    stored = None if models is None else {code: it.to_json() for code, it in models.items()}
    job = Job(engine="faster-whisper", model="base", options=OPTIONS.to_json())
    job.transcription = Transcription(models=stored)
    return decoding_identity(job, "a" * 64, language)


def test_that_of_one_language_is_as_before_there_were_several() -> None:
    assert identity() == {
        "adapter": ADAPTER_REVISION,
        "engine": "faster-whisper",
        "weights": "a" * 64,
        "options": asdict(DecodingOptions("en", hotwords="Steno")),
    }


def test_that_of_several_covers_each_model_the_detector_and_the_main_language() -> None:
    whisper = ChosenModel(ModelName("faster-whisper", "base"), "a" * 64)
    network = ChosenModel(ModelName("sherpa-onnx", "vi-68m"), "b" * 64)
    other = ChosenModel(network.name, "c" * 64)
    whole = {"vi": network, "en": whisper, ANY_LANGUAGE: whisper}
    found = [
        identity(whole),
        identity(whole, language="vi"),
        identity(whole | {"vi": other}),
        identity(whole | {"en": other}),
        identity(whole | {ANY_LANGUAGE: other}),
        identity(whole | {"fr": whisper}),
    ]
    assert len({str(each) for each in found}) == len(found)
    assert found[0]["languages"]["vi"]["options"]["beam_size"] == 1
    assert identity(dict(reversed(whole.items()))) == found[0], "their order changes nothing"
