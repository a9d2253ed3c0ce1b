"""What networks for recordings promise on sherpa-onnx (common.asr.sherpa): one of each kind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common.asr.engine import DecodingOptions, Samples
from common.asr.loading import load_engine
from common.asr.sherpa import SherpaOnnx
from common.domain.values import SAMPLES_PER_MS, Segment, Word
from common.errors import WeightsMissing, WeightsUnusable
from common.weights.sherpa import Kind, network_in
from tests.support.offline_networks import (
    NEMO_TOKENS,
    SENSE_VOICE_TOKENS,
    expected_text,
    write_moonshine,
    write_nemo_ctc,
    write_nemo_tdt,
    write_nemo_transducer,
    write_offline_wenet_ctc,
    write_offline_zipformer2,
    write_offline_zipformer2_ctc,
    write_sense_voice,
)
from tests.support.speech import noise, silence
from tests.support.streaming_networks import (
    CHUNK_MS,
    CYCLE,
    TOKENS,
    write_tokens,
    write_zipformer2,
    write_zipformer2_ctc,
)

Write = Callable[[Path], None]
KINDS: dict[Kind, Write] = {
    Kind.TRANSDUCER: write_offline_zipformer2,
    Kind.NEMO_TRANSDUCER: write_nemo_tdt,
    Kind.ZIPFORMER_CTC: write_offline_zipformer2_ctc,
    Kind.WENET_CTC: write_offline_wenet_ctc,
    Kind.NEMO_CTC: write_nemo_ctc,
    Kind.SENSE_VOICE: write_sense_voice,
    Kind.MOONSHINE: write_moonshine,
}
WRITERS = (*KINDS.values(), write_nemo_transducer)
GREEDY = DecodingOptions(language="vi", beam_size=1)
ONE_CHUNK = CHUNK_MS / 1000


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    request.param(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> SherpaOnnx:
    return SherpaOnnx(folder)


def loud(chunks: int) -> Samples:
    """Noise that lasts a little longer than so many chunks of the networks, then silence."""
    return np.concatenate([noise(chunks * ONE_CHUNK + 0.03, level=0.1), silence(1)])


def one(
    engine: SherpaOnnx, window: Samples, options: DecodingOptions = GREEDY
) -> tuple[Segment, ...]:
    (segments,) = engine.transcribe([window], options)
    return segments


def text(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments).strip()


def words(segments: tuple[Segment, ...]) -> list[Word]:
    return [word for segment in segments for word in segment.words]


def test_loud_audio_becomes_its_text(engine: SherpaOnnx) -> None:
    found = text(one(engine, loud(7)))
    assert found in (expected_text(range(7)), expected_text(range(8)))


def test_how_windows_are_grouped_into_calls_changes_nothing(engine: SherpaOnnx) -> None:
    windows = [loud(2), silence(2), loud(8), loud(5)]
    together = engine.transcribe(windows, GREEDY)
    assert together == [one(engine, window) for window in windows]
    assert together == engine.transcribe(windows[::-1], GREEDY)[::-1]


def test_two_engines_have_the_same_text(folder: Path, engine: SherpaOnnx) -> None:
    window = np.concatenate([loud(3), loud(4)])
    assert one(SherpaOnnx(folder), window) == one(engine, window)


def test_words_join_to_the_text_in_order_inside_the_window(engine: SherpaOnnx) -> None:
    window = loud(8)
    segments = one(engine, window)
    found = words(segments)
    assert "".join(word.text for word in found).strip() == text(segments)
    assert all(left.span.end_ms <= right.span.start_ms for left, right in pairwise(found))
    assert all(word.span.duration_ms > 0 for word in found)
    assert found[-1].span.end_ms <= len(window) // SAMPLES_PER_MS
    assert all(0 < word.probability <= 1 for word in found)


def test_words_have_about_the_times_of_their_audio(engine: SherpaOnnx) -> None:
    window = np.concatenate([silence(ONE_CHUNK * 3), loud(4)])
    found = words(one(engine, window))
    assert abs(found[0].span.start_ms - 3 * CHUNK_MS) < 300
    assert found[-1].span.end_ms < 8 * CHUNK_MS


def test_segments_are_the_same_without_word_timestamps(engine: SherpaOnnx) -> None:
    full = one(engine, loud(5))
    plain = one(engine, loud(5), replace(GREEDY, word_timestamps=False))
    assert plain == tuple(replace(segment, words=()) for segment in full)


@pytest.mark.parametrize("samples", [0, 1, 399, 1_600, 8_000, 480_000])
def test_a_window_may_have_any_length(engine: SherpaOnnx, samples: int) -> None:
    window = np.pad(loud(3)[:samples], (0, max(0, samples - len(loud(3)))))
    for segment in one(engine, window):
        assert segment.span.end_ms <= samples // SAMPLES_PER_MS


def test_silence_has_no_text(engine: SherpaOnnx) -> None:
    assert engine.transcribe([silence(2), silence(20)], GREEDY) == [(), ()]


def test_no_windows_are_no_work(engine: SherpaOnnx) -> None:
    assert engine.transcribe([], GREEDY) == []
    assert engine.languages([]) == []


def test_no_language_is_detected(engine: SherpaOnnx) -> None:
    assert engine.languages([loud(4), silence(1)]) == [{}, {}]


@pytest.mark.parametrize(
    "hotwords",
    ["", "một hai, BA", "Köln, 北京", "/#:2 @x", "một " * 3_000, ",".join(["hai"] * 3_000)],
)
def test_any_hotwords_and_beam_are_accepted(
    engine: SherpaOnnx, hotwords: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = replace(GREEDY, beam_size=8, hotwords=hotwords, initial_prompt="Xin chào.")
    assert text(one(engine, loud(4), options))
    assert capfd.readouterr() == ("", "")


def test_a_network_that_has_only_capitals_writes_lower_case(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokens = (tmp_path / "tokens.txt").read_text("utf-8")
    capitals = re.sub(r"<[^>]+>|.", lambda it: it[0] if "<" in it[0] else it[0].upper(), tokens)
    (tmp_path / "tokens.txt").write_text(capitals, "utf-8")
    assert one(SherpaOnnx(tmp_path), loud(5)) == one(SherpaOnnx(folder), loud(5))


@pytest.mark.parametrize("capitals", [False, True])
def test_hotwords_have_the_letters_of_the_network(tmp_path: Path, capitals: bool) -> None:
    tokens = [each.upper() if capitals and "<" not in each else each for each in TOKENS]
    write_offline_zipformer2(tmp_path, unsure=(TOKENS[3], TOKENS[4]))
    write_tokens(tmp_path, tokens)
    engine = SherpaOnnx(tmp_path)
    for hotword in ("hai", "HAI", "Hai"):
        found = text(one(engine, loud(1), replace(GREEDY, hotwords=f"Köln, {hotword}")))
        assert found == "hai"


def test_hotwords_of_one_call_do_not_apply_to_the_next(engine: SherpaOnnx) -> None:
    before = one(engine, loud(6))
    one(engine, loud(6), replace(GREEDY, hotwords="hai ba"))
    assert one(engine, loud(6)) == before


def test_a_hotword_is_preferred_where_the_audio_is_unclear(tmp_path: Path) -> None:
    write_offline_zipformer2(tmp_path, unsure=("\u2581một", "\u2581hai"))
    engine = SherpaOnnx(tmp_path)
    assert "hai" not in text(one(engine, loud(1)))
    assert text(one(engine, loud(1), replace(GREEDY, hotwords="hai"))) == "hai"


def test_an_engine_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SherpaOnnx(folder).transcribe([loud(3), silence(1)], GREEDY)
    assert capfd.readouterr() == ("", "")


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "write"), KINDS.items())
def test_the_kind_of_a_network_is_in_its_folder(kind: Kind, write: Write, tmp_path: Path) -> None:
    write(tmp_path)
    assert network_in(tmp_path).kind is kind


def test_all_kinds_for_recordings_are_tested() -> None:
    assert set(KINDS) == {kind for kind in Kind if not kind.is_streaming}


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="steno models pull nowhere --engine sherpa-onnx"):
        load_engine("sherpa-onnx", tmp_path / "nowhere")


def test_half_a_network_is_unusable(folder: Path, tmp_path: Path) -> None:
    for path in sorted(folder.iterdir()):
        half = tmp_path / path.stem
        shutil.copytree(folder, half)
        (half / path.name).unlink()
        with pytest.raises(WeightsUnusable, match="lacks "):
            SherpaOnnx(half)


def test_a_truncated_network_is_unusable(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.onnx"):
        cut = tmp_path / path.stem
        shutil.copytree(folder, cut)
        (cut / path.name).write_bytes(path.read_bytes()[:-40])
        with pytest.raises(WeightsUnusable, match="truncated"):
            SherpaOnnx(cut)


@pytest.mark.parametrize("write", [write_zipformer2, write_zipformer2_ctc])
def test_a_network_for_streams_is_unusable(write: Write, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(WeightsUnusable, match="network is for live streams only"):
        SherpaOnnx(tmp_path)


def swap(path: Path, old: bytes, new: bytes) -> None:
    """Change a file without changing its length."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("write", "damage", "complaint"),
    [
        (
            write_offline_zipformer2_ctc,
            lambda folder: swap(folder / "model.onnx", b"zipformer2_ctc", b"conformer9_ctc"),
            "model.onnx is of type conformer9_ctc, not zipformer2_ctc or wenet_ctc",
        ),
        (
            write_offline_zipformer2,
            lambda folder: swap(folder / "encoder.onnx", b"model_type", b"model_kind"),
            "encoder.onnx is of type unknown",
        ),
        (
            write_nemo_ctc,
            lambda folder: swap(folder / "model.onnx", b"normalize_type", b"abnormal_types"),
            "the metadata of model.onnx lacks normalize_type",
        ),
        (
            write_nemo_tdt,
            lambda folder: swap(folder / "encoder.onnx", b"a tdt model", b"any   model"),
            "joiner.onnx has 11 outputs for 6 tokens",
        ),
        *(
            (
                write,
                lambda folder: write_tokens(folder, ["<blk>", "a"]),
                "tokens.txt has 2 tokens",
            )
            for write in WRITERS
            if write is not write_moonshine
        ),
        (
            write_nemo_transducer,
            lambda folder: write_tokens(folder, ["<blk>", *NEMO_TOKENS[:-1]]),
            "has 6 tokens and <blk> as number 0; the network has 6, of which <blk> is the last",
        ),
        (
            write_offline_wenet_ctc,
            lambda folder: write_tokens(folder, list("abcdef")),
            "has none of <blank>, <blk>, <eps>",
        ),
        (
            write_sense_voice,
            lambda folder: write_tokens(folder, SENSE_VOICE_TOKENS[:-1]),
            "has 9 tokens, the network 10",
        ),
        (
            write_moonshine,
            lambda folder: (folder / "tokens.txt").write_text("three words here\n"),
            "line 1: expected a token and a number",
        ),
    ],
)
def test_damaged_weights_are_unusable_with_a_reason(
    write: Write, damage: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsUnusable, match=complaint):
        SherpaOnnx(tmp_path)


def test_the_networks_made_here_speak_vietnamese() -> None:
    assert expected_text(range(3)) == "".join(CYCLE).strip() == "một haiba"
