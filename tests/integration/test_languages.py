"""The language of a job: detected, mixed, or another than the one asked for."""

from __future__ import annotations

import numpy as np
import pytest

from common.domain.detection import LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES
from common.domain.job import JobStatus
from common.domain.request import Cutting, Options
from common.domain.values import SAMPLE_RATE
from tests.support.service import PATIENCE_S, Start
from tests.support.speech import Samples, silence, speak

pytestmark = pytest.mark.usefixtures("weights_dir")

OF_LANGUAGE = {LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES}
FRENCH = "Bonjour, je voudrais une tasse de café et un morceau de pain, s'il vous plaît."
ENGLISH = "The weather will be warm and dry in the south, with some rain in the mountains."


def music(seconds: float) -> Samples:
    """A chord that swells four times a second."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (262, 330, 392))
    return np.asarray(0.1 * chord * (1 + np.sin(8 * np.pi * time)), dtype=np.float32)


def test_a_job_says_which_languages_were_found_and_whether_they_are_what_was_asked_for(
    start: Start,
) -> None:
    service = start()
    service.start_worker()
    service.start_dispatcher()
    french, english = speak(FRENCH, "fr"), speak(ENGLISH)
    by_length = Options(cutting=Cutting(strategy="fixed"))

    after_music = service.submit(
        np.concatenate([music(40), french]), language="auto", options=by_length
    )
    mixed = service.submit(np.concatenate([french, silence(8), english]), language="auto")
    wrong = service.submit(english, language="vi")

    for job_id, language, found, warnings in (
        (after_music, "fr", {"fr"}, set()),
        (mixed, None, {"fr", "en"}, {MIXED_LANGUAGES}),
        (wrong, "vi", {"en"}, {LANGUAGE_MISMATCH}),
    ):
        snapshot = service.ended(job_id, 3 * PATIENCE_S)
        assert snapshot.status == JobStatus.COMPLETED
        assert set(snapshot.warnings) & OF_LANGUAGE == warnings
        assert language in {None, snapshot.language}
        manifest = service.jobs.text(job_id).manifest
        assert manifest is not None
        assert {code for code, p in manifest["language_probabilities"].items() if p > 0.3} == found
    assert "pain" in service.text(after_music)
