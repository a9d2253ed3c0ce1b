"""Names of languages and weights as clients of other services write them."""

from __future__ import annotations

import pytest

from api.openai.model_names import weights_named
from common.domain.languages import LANGUAGES, language_code


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("vi", "vi"),
        ("VI", "vi"),
        ("en-US", "en"),
        ("vi-VN", "vi"),
        ("pt_BR", "pt"),
        ("zh-Hant-TW", "zh"),
        ("English", "en"),
        (" vietnamese ", "vi"),
        ("Haitian Creole", "ht"),
        ("nb-NO", "no"),
        ("eng", "en"),
        ("vie", "vi"),
        ("tlh", None),
        ("x", None),
        ("", None),
        ("-", None),
    ],
)
def test_a_language_is_known_however_it_is_written(sent: str, code: str | None) -> None:
    assert language_code(sent) == code


def test_every_language_is_known_by_its_code_and_its_name() -> None:
    for code, name in LANGUAGES.items():
        assert language_code(code) == language_code(name) == code


@pytest.mark.parametrize(
    ("sent", "weights"),
    [
        ("whisper-1", ("", "")),
        ("gpt-4o-transcribe", ("", "")),
        ("gpt-4o-mini-transcribe", ("", "")),
        ("gpt-4o-mini-transcribe-2025-12-15", ("", "")),
        ("gpt-4o-transcribe-diarize", ("", "")),
        ("base", ("", "base")),
        ("whisper.cpp/tiny", ("whisper.cpp", "tiny")),
        ("faster-whisper/base", ("faster-whisper", "base")),
        ("whisper-large-v3", ("", "large-v3")),
        ("large-v3-turbo", ("", "large-v3-turbo")),
        ("turbo", ("", "large-v3-turbo")),
        ("Systran/faster-whisper-small", ("", "small")),
        ("openai/whisper-small", ("", "small")),
        ("openai/whisper-large-v3-turbo", ("", "large-v3-turbo")),
        ("deepdml/faster-whisper-large-v3-turbo-ct2", ("", "large-v3-turbo")),
        ("ggml-base.bin", ("", "base")),
        ("vinai/PhoWhisper-medium", ("", "phowhisper-medium")),
        # Others are nobody's but their own.
        ("whisper-mine", ("", "whisper-mine")),
        ("Systran/faster-whisper-small.en", ("Systran", "faster-whisper-small.en")),
        ("vosk/base", ("vosk", "base")),
        ("gpt-4o-transcribe-mini", ("", "gpt-4o-transcribe-mini")),
    ],
)
def test_weights_are_known_by_their_published_names(sent: str, weights: tuple[str, str]) -> None:
    assert weights_named(sent) == weights
