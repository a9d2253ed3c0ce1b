"""Whisper on ggml (whisper.cpp), through pywhispercpp's bindings: one window at a time.

The bindings are used directly, not pywhispercpp's `Model`: it keeps the parameters of one call for
the next, and strips the spaces between words.

Timestamp tokens stay on, unlike with faster-whisper: whisper.cpp continues from the last one inside
a window, so no text is lost, and English has fewer errors (base, beam 5, LibriSpeech test-other:
11.1 % against 11.7 % without). The words' times still come from the cross-attention.
"""

from __future__ import annotations

import atexit
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import _pywhispercpp as ggml
import numpy as np

from common.asr import guards
from common.asr.engine import DecodingOptions, Samples
from common.asr.guards import DecodingResult
from common.asr.segments import segments_of
from common.domain.languages import WRITTEN_WITHOUT_SPACES
from common.domain.values import SAMPLE_RATE, Segment, Span, Word
from common.errors import EngineFailed

MIN_SAMPLES = SAMPLE_RATE + SAMPLE_RATE // 10
"""whisper.cpp rejects audio under 1 s (its issue 39); shorter windows are padded with silence."""

MAGIC = 0x67676D6C
LOG_ERROR = 4
LARGE_LAYERS = 32
TURBO_LAYERS = 4
LARGE_V3_MELS = 128
ENGLISH_VOCABULARY = 51_864
BEST_OF = 5
"""Samples drawn at a temperature above 0; the most probable one is used (openai/whisper)."""

APPENDED_MARKS = frozenset("\"'.。,，!！?？:：”)]}、…;")  # noqa: RUF001 - full-width marks are meant


class WhisperCpp:
    """The engine ``whisper.cpp``; see `common.asr.engine.SpeechEngine`.

    ``no_speech_prob`` stays 0.0: the bindings lack it, and whisper.cpp 1.8 reads it after the
    prompt, where it is under 0.05 even for noise (measured). Silence is detected by the log
    probability and the loudness alone.

    Args:
        weights: A ggml file, f16 or quantized.
        threads: Cores this process may use.

    Raises:
        EngineFailed: The weights do not load.
    """

    name = "whisper.cpp"
    encoder = "whisper.cpp"

    def __init__(self, weights: Path, *, threads: int = 1) -> None:
        _take_over_log()
        self._weights = weights
        self._threads = threads
        self._heads = _alignment_heads(weights)
        self._context: Any = None
        self._load()
        self._languages = [
            ggml.whisper_lang_str(number) for number in range(ggml.whisper_lang_max_id() + 1)
        ]

    def _load(self) -> None:
        if self._context is not None:
            ggml.whisper_free(self._context)
        params = ggml.whisper_context_default_params()
        params.use_gpu = False
        # The alignment needs the attention, which flash attention never stores.
        params.flash_attn = False
        params.dtw_token_timestamps = True
        params.dtw_aheads_preset = self._heads
        _errors.clear()
        self._context = ggml.whisper_init_from_file_with_params(str(self._weights), params)
        self._fresh = True
        if _errors:  # the bindings wrap even a null pointer as a context
            self._context = None
            raise EngineFailed(reason=_errors[0].strip())

    def languages(
        self,
        windows: Sequence[Samples],
        *,
        quick: bool = False,  # noqa: ARG002
    ) -> list[Mapping[str, float]]:
        """See `SpeechEngine.languages`."""
        return [self._detect(window) for window in windows]

    def _detect(self, window: Samples) -> Mapping[str, float]:
        if not ggml.whisper_is_multilingual(self._context):
            return {"en": 1.0}
        self._fresh = False
        found = np.zeros(len(self._languages), dtype=np.float32)
        audio = _padded(window)
        failed = ggml.whisper_pcm_to_mel(self._context, audio, len(audio), self._threads)
        if failed or ggml.whisper_lang_auto_detect(self._context, 0, self._threads, found) < 0:
            raise EngineFailed(reason="whisper.cpp could not detect the language")
        return dict(zip(self._languages, found.tolist(), strict=True))

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """See `SpeechEngine.transcribe`."""
        return [self._one(window, options) for window in windows]

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],  # noqa: ARG002
        options: DecodingOptions,  # noqa: ARG002
    ) -> list[tuple[Word, ...] | None]:
        """See `SpeechEngine.align`: whisper.cpp aligns only what it has decoded itself."""
        return [None for _ in windows]

    def _one(self, window: Samples, options: DecodingOptions) -> tuple[Segment, ...]:
        # The context keeps its random generator and the layout of its cache: only a new one decodes
        # a window reproducibly (0.1 s of 3.5 s a window with base).
        if not self._fresh:
            self._load()
        self._fresh = False
        words: dict[float, list[Word]] = {}
        searched: DecodingResult | None = None

        def decode(temperature: float) -> DecodingResult:
            nonlocal searched
            decoding, words[temperature] = self._decode(window, options, temperature)
            searched = decoding if temperature == 0 else searched
            return decoding

        decoding = guards.climb(
            options.temperatures,
            decode,
            lambda: guards.mismatch(options.language, self._detect(window)),
            len(window) / SAMPLE_RATE,
        )
        found = words[decoding.temperature]
        if searched is not None and not guards.loops(searched):
            # At a temperature above 0 the probabilities are those of the scaled distribution, in
            # which at 0.2 nearly any text is probable.
            sure = min(decoding.avg_logprob, searched.avg_logprob)
            decoding = replace(decoding, avg_logprob=sure)
        return segments_of(decoding, found, window, keep_words=options.word_timestamps)

    def _decode(
        self, window: Samples, options: DecodingOptions, temperature: float
    ) -> tuple[DecodingResult, list[Word]]:
        audio = _padded(window)
        params = self._params(options, temperature)
        if ggml.whisper_full(self._context, params, audio, len(audio)) != 0:
            raise EngineFailed(reason="whisper.cpp could not decode a window")
        tokens = [
            ggml.whisper_full_get_token_data(self._context, segment, index)
            for segment in range(ggml.whisper_full_n_segments(self._context))
            for index in range(ggml.whisper_full_n_tokens(self._context, segment))
        ]
        end_of_text = ggml.whisper_token_eot(self._context)
        words = self._words([token for token in tokens if token.id < end_of_text], options.language)
        decoding = DecodingResult(
            text="".join(word.text for word in words),
            avg_logprob=sum(token.plog for token in tokens) / len(tokens) if tokens else 0.0,
            no_speech_prob=0.0,
            temperature=temperature,
            tokens=tuple(token.id for token in tokens),
        )
        return decoding, words

    def _params(self, options: DecodingOptions, temperature: float) -> Any:
        """New parameters for every decoding, so that no call affects the next."""
        strategies = ggml.whisper_sampling_strategy
        sampling = temperature > 0 or options.beam_size == 1
        params = ggml.whisper_full_default_params(
            strategies.WHISPER_SAMPLING_GREEDY
            if sampling
            else strategies.WHISPER_SAMPLING_BEAM_SEARCH
        )
        if sampling:
            params.greedy = {"best_of": BEST_OF if temperature > 0 else 1}
        else:
            params.beam_search = {"beam_size": options.beam_size, "patience": -1.0}
        params.n_threads = self._threads
        params.language = options.language
        params.translate = options.task == "translate"
        params.temperature = temperature
        params.temperature_inc = 0.0  # the fallback is in `guards.climb`, the same for both engines
        params.no_context = True
        params.suppress_nst = True  # "(music)", "♪": as openai/whisper does
        params.print_progress = False
        params.print_timestamps = False
        if options.context:
            params.initial_prompt = f" {options.context}"
        return params

    def _words(self, tokens: Sequence[Any], language: str) -> list[Word]:
        """Whole words from text tokens.

        A token's alignment (in 10 ms) is the end of its audio, so it starts where the previous one
        ended. A mark joins its word, but the pause aligned to the mark does not.
        """
        words: list[Word] = []
        spelling = _Spelling()
        clock = 0
        for token in tokens:
            piece: bytes = ggml.whisper_token_to_bytes(self._context, token.id)
            if spelling.ends_before(piece, spaced=language not in WRITTEN_WITHOUT_SPACES):
                words.append(spelling.word())
                spelling = _Spelling()
            after = max(clock, token.t_dtw * 10)
            spelling.add(piece, Span(clock, after), token.p)
            clock = after
        return [*words, spelling.word()] if tokens else words


class _Spelling:
    """A word under construction, from pieces that may split a character's bytes."""

    def __init__(self) -> None:
        self._bytes = b""
        self._spans: list[Span] = []
        self._probabilities: list[float] = []

    def add(self, piece: bytes, span: Span, probability: float) -> None:
        self._bytes += piece
        self._probabilities.append(probability)
        if not self._spans or not _is_mark(piece):
            self._spans.append(span)

    def ends_before(self, piece: bytes, *, spaced: bool) -> bool:
        if not self._bytes or _is_mark(piece):
            return False
        return piece.startswith(b" ") if spaced else _is_whole(self._bytes)

    def word(self) -> Word:
        return Word(
            self._bytes.decode(errors="replace"),
            Span(self._spans[0].start_ms, self._spans[-1].end_ms),
            min(1.0, fmean(self._probabilities)),
        )


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_mark(piece: bytes) -> bool:
    """Whether a piece is punctuation that belongs to the word before it."""
    return piece.decode(errors="ignore") in APPENDED_MARKS


def _padded(window: Samples) -> Samples:
    audio = np.ascontiguousarray(window, dtype=np.float32)
    return np.pad(audio, (0, max(0, MIN_SAMPLES - len(audio))))


def _alignment_heads(weights: Path) -> Any:
    """The cross-attention heads that follow the audio, by the sizes in the file's header.

    Fine-tuned weights (PhoWhisper) keep the sizes of their origin, and nearly its heads.

    Raises:
        EngineFailed: This is not a ggml file.
    """
    try:
        with weights.open("rb") as file:
            header = struct.unpack("<12i", file.read(48))
    except (OSError, struct.error) as error:
        raise EngineFailed(reason=error) from error
    # whisper.cpp, whisper_model_load: magic, vocabulary, audio context, state, heads, layers, ...
    magic, vocabulary, audio_layers, text_layers, mels = (header[i] for i in (0, 1, 5, 9, 10))
    if magic != MAGIC:
        raise EngineFailed(reason=f"{weights.name} is not a ggml file")
    presets = ggml.whisper_alignment_heads_preset
    if audio_layers == LARGE_LAYERS:
        if text_layers == TURBO_LAYERS:
            return presets.WHISPER_AHEADS_LARGE_V3_TURBO
        return (
            presets.WHISPER_AHEADS_LARGE_V3
            if mels == LARGE_V3_MELS
            else presets.WHISPER_AHEADS_LARGE_V2
        )
    size = {4: "TINY", 6: "BASE", 12: "SMALL", 24: "MEDIUM"}.get(audio_layers)
    if size is None:
        raise EngineFailed(
            reason=f"{weights.name} has {audio_layers} layers, unlike any Whisper model"
        )
    english = "_EN" if vocabulary == ENGLISH_VOCABULARY else ""
    return getattr(presets, f"WHISPER_AHEADS_{size}{english}")


_errors: deque[str] = deque(maxlen=16)
"""whisper.cpp's errors since the last load; its log is one for the whole process."""


def _take_over_log() -> None:
    """Keep whisper.cpp's log off stderr, and collect its errors.

    The callback must be removed before the interpreter ends, or the library would call into it.
    """
    ggml.whisper_log_set(_collect_error)
    atexit.register(ggml.whisper_log_set, None)


def _collect_error(level: int, message: str) -> None:
    if level == LOG_ERROR:
        _errors.append(message)
