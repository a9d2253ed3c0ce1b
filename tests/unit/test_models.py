"""The table of models for ``auto``, and what a worker makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.domain.models import ModelName, candidates, parse_table
from common.domain.request import Options
from common.errors import ModelFetchFailed, PullFailed, SetupProblem, WeightsMissing
from common.settings import AsrSettings, StreamSettings, load_settings
from common.weights.manifest import FileSpec, HubFiles, Manifest, WeightsSpec
from common.weights.store import WeightsStore
from common.weights.transfer import SourceFailed
from scripts.cli.weights import have_default_weights, have_one
from tests.support.offline_networks import write_offline_zipformer2
from worker.models import Models

BEST, SECOND, OWN = (ModelName("sherpa-onnx", name) for name in ("best", "second", "own"))
BASE = ModelName("faster-whisper", "base")
MANIFEST = Manifest(
    tuple(
        WeightsSpec(
            *("sherpa-onnx", model, ("vi",), "MIT"),
            (FileSpec("tokens.txt", 5, "0" * 64),),
            (HubFiles("someone/nothing", "main"),),
        )
        for model in ("best", "second")
    )
)


def test_a_table_has_the_models_of_each_language_in_order() -> None:
    table = parse_table(" VI = sherpa-onnx/best ,sherpa-onnx/second;*=sherpa-onnx/own ; ")
    assert table == {"vi": (BEST, SECOND), "*": (OWN,)}
    assert candidates(table, "vi") == (BEST, SECOND)
    assert candidates(table, "en") == candidates(table, "auto") == (OWN,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"must have an entry \* ="),
        ("vi = sherpa-onnx/best", r"must have an entry \* ="),
        ("* = base", "must be like faster-whisper/base; got 'base'"),
        ("* = faster-whisper/", "must be like faster-whisper/base"),
        ("faster-whisper/base", "must have entries like vi = faster-whisper/base"),
        ("* = vosk/base", "must have engines among faster-whisper"),
        ("* = sherpa-onnx/own", r"among faster-whisper, whisper\.cpp for \*; got sherpa-onnx/own"),
        ("xx = faster-whisper/base; * = faster-whisper/base", "Whisper codes .* got 'xx'"),
    ],
)
def test_a_wrong_table_is_rejected_with_the_place(
    monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        AsrSettings(model_for=text or " ; ")
    monkeypatch.setenv("MODEL_FOR", text or " ; ")
    with pytest.raises(SetupProblem, match="MODEL_FOR"):
        load_settings()


def test_the_published_table_names_models_of_the_manifest() -> None:
    manifest = Manifest.load()
    for language, names in AsrSettings().models_for.items():
        for name in names:
            spec = manifest.find(name.engine, name.model)
            assert spec.sources
            assert language in spec.languages or spec.languages == ("*",)
        assert manifest.find(names[-1].engine, names[-1].model).languages == ("*",)


def test_options_keep_the_models_through_json() -> None:
    options = Options(models={"vi": (BEST, SECOND), "*": (OWN,)}, fetch_model=True)
    assert Options.from_json(options.to_json()) == options
    assert Options.from_json({}) == Options()


def test_a_job_uses_the_models_that_its_options_ask_for() -> None:
    asr = AsrSettings(
        default_model="auto", default_language="vi", model_for=f"vi={BEST},{SECOND};*={BASE}"
    )
    assert asr.default_models == (BEST, SECOND)
    assert asr.models_of(None, None, "en") == (BASE,)
    assert asr.models_of("whisper.cpp", "AUTO", "en") == (ModelName("whisper.cpp", "base"),)
    assert asr.models_of("whisper.cpp", "tiny", None) == (ModelName("whisper.cpp", "tiny"),)
    assert asr.models_of(None, "base", "vi") == (ModelName("faster-whisper", "base"),)


def no_packages(*_: object) -> None:
    """In place of `packages.fetch`: a registry that is unreachable."""
    raise SourceFailed("unreachable")


# --- of a worker ----------------------------------------------------------------------------------


def have(store: WeightsStore, name: ModelName) -> None:
    folder = store.location(name.engine, name.model)
    folder.mkdir()
    write_offline_zipformer2(folder)


def test_the_first_model_that_is_here_is_used(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path, MANIFEST)
    models = Models(store)
    have(store, OWN)
    assert models.first_present([BEST, OWN]) == OWN
    assert models.have_one([BEST, OWN]) == OWN
    assert models.first_present([BEST, SECOND]) is None
    with pytest.raises(WeightsMissing, match="best for sherpa-onnx"):
        models.have_one([BEST, SECOND])
    with pytest.raises(WeightsMissing):
        models.resolve(BEST)


def test_a_model_without_a_reachable_source_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    store = WeightsStore(tmp_path, MANIFEST)
    models = Models(store, auto_fetch=True)
    with pytest.raises(ModelFetchFailed, match="HF_HUB_OFFLINE"):
        models.resolve(BEST)
    have(store, OWN)
    assert models.have_one([BEST, OWN]) == OWN
    assert models.fetch_limit_s([BEST, OWN]) > models.fetch_limit_s([OWN, BEST]) == 0
    assert Models(store).fetch_limit_s([BEST, OWN]) == 0, "it may not fetch"
    assert "steno models pull best" in models.advice(BEST)
    assert models.advice(OWN) == "sherpa-onnx/own is not installed"


def test_the_command_line_fetches_a_better_model_only_if_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    store = WeightsStore(tmp_path, Manifest.load())
    own = ModelName("sherpa-onnx", "own")
    have(store, own)
    names = (ModelName("sherpa-onnx", "vi-68m"), own)
    have_one(AsrSettings(models_dir=tmp_path, auto_fetch=False), names)
    assert capsys.readouterr().err == ""
    have_one(AsrSettings(models_dir=tmp_path, auto_fetch=True), names)
    assert f"HF_HUB_OFFLINE is set; trying {own}" in capsys.readouterr().err
    with pytest.raises(PullFailed, match="vi-68m"):
        have_one(AsrSettings(models_dir=tmp_path, auto_fetch=False), names[:1])


def test_the_command_line_has_the_default_models_of_jobs_and_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("common.weights.packages.fetch", no_packages)
    have(WeightsStore(tmp_path, Manifest.load()), OWN)
    asr = AsrSettings(models_dir=tmp_path, model_for=f"vi={OWN};*={BASE}", auto_fetch=True)
    have_default_weights(asr, StreamSettings(max_whisper=0))
    assert capsys.readouterr().err == "", "there are no streams"
    have_default_weights(asr.model_copy(update={"auto_fetch": False}), StreamSettings())
    assert capsys.readouterr().err == ""
    have_default_weights(asr, StreamSettings())
    assert "For live streams: The weights base could not be fetched" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    models = Models(WeightsStore(tmp_path / "file", MANIFEST), auto_fetch=True)
    with pytest.raises(ModelFetchFailed, match="file cannot be written: Not a directory"):
        models.resolve(BEST)
