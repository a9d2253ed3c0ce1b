"""Whisper on CTranslate2, through faster-whisper: all windows of a chunk decoded as one batch.

Measurements (base, int8, one thread, 562 s of an interview in 20 windows):

- Without timestamp tokens the word error rate is 15.0 %, with them 22.0 %: in a window that ends
  in the middle of a sentence the decoder closes the last timestamp and drops what follows.
  Times come from the cross-attention instead, for 10 % more work.
- Beam 5 costs 1.8 times the decoding of beam 1 and makes 1.6 points fewer errors.
- The decoder reads the encoder's output for every token, padding included. Of the padding it needs
  what follows the speech, and the end, which it attends to for every token. Windows of at most 5 s
  (10 s): with all of it 26.3 % (20.9 %) of the words are wrong, without the end 27.7 % (21.7 %),
  without the middle 25.4 % (20.7 %), and the decoder takes 0.6 (0.7) of the time. From 22 s on
  nothing is left out.
- The encoder is fastest one window at a time: a batch's attention matrices (72 MB per window)
  exceed the cache. The decoder gains from the batch: 8 windows take 0.87 of the time of twice 4.
- No text, word or time depends on the batch (equal for 1, 4 and 8); the last bits of the
  probabilities do, so they are rounded.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens, merge_punctuations
from numpy.typing import NDArray

from common.asr import guards
from common.asr.encoders import processor_flags
from common.asr.engine import DecodingOptions, Samples
from common.asr.guards import DecodingResult
from common.asr.segments import segments_of, without_pauses
from common.domain.aligning import spread
from common.domain.languages import WRITTEN_WITHOUT_SPACES
from common.domain.values import (
    MAX_WINDOW_MS,
    SAMPLE_RATE,
    SAMPLES_PER_MS,
    Detected,
    Segment,
    Span,
    Word,
)
from common.errors import EngineFailed

if TYPE_CHECKING:
    from common.asr.openvino_encoder import OpenVinoEncoder

SURE_LOGPROB = -0.4
"""Above it, text is hardly ever a translation, or invented from another language. Detecting a
window's language takes 4 % of its time (base)."""
BEST_OF = 5
"""Samples drawn at a temperature above 0; the most probable one is used (openai/whisper)."""

SEED = 20_220_921
MOST_TOKENS_PER_S = 30
MOST_SPARE_TOKENS = 32
"""No speech has more tokens, in any script; a decoder that writes more is in a loop."""
STEP_S = 4
"""The decoder gets a window's speech and padding up to a multiple of this, and the padding's end.
Windows of the same multiple are decoded together: no window's text depends on its neighbours."""
SILENCE_S = 2
"""Least padding after the speech; with 1 s the decoder may repeat the last words."""
LEAST_S = 8
"""Least of speech and padding; with less the decoder finds text in very short noise."""
PADDING_END_S = 3
"""How much of the end of the padding the decoder gets: it attends to it for every token."""
BATCH_BYTES = 1_000_000_000
"""Windows are decoded together, on a CPU, while their number times the size of the weights is at
most this, and at least two. For each the decoder needs memory in proportion to its size: 4 windows
of 30 s take 263 MB with base and 747 MB with small, 2 take 145 and 405 MB. Two by two, small's
decoder needs 1.15 times as long."""
SHORT_S = 10
"""To detect the language quickly, shorter windows are encoded with little padding. Of 40 pieces of
4 s, English or Vietnamese, it tells as many apart as with all of it (39), in a tenth of the time
(base). Where any language may be spoken, it makes more mistakes."""
FRAMES = 3_000
"""Mel frames in 30 s, the length of the encoder's training; shorter windows are padded."""
POSITIONS_PER_S = 50
"""Of the encoder's output."""
SAMPLES_PER_FRAME = 160
MIN_SAMPLES = 400
"""One Fourier window; shorter audio has no spectrum."""
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - the full-width marks are meant


class FasterWhisper:
    """The engine ``faster-whisper``; see `common.asr.engine.SpeechEngine`.

    Args:
        weights: A folder in CTranslate2's layout.
        threads: Cores this process may use. One process per core with one thread each is faster
            than one process with many threads (measured: 1.6 times).
        device: ``cpu`` or ``cuda``.
        compute_type: A compute type of CTranslate2: ``int8``, ``float16``, ...
        encoder: Replaces CTranslate2's: features of shape (1, mels, 3000) to (1, 1500, width).

    Raises:
        EngineFailed: The weights do not load, or the device is unavailable.
    """

    name = "faster-whisper"

    def __init__(
        self,
        weights: Path,
        *,
        threads: int = 1,
        device: str = "cpu",
        compute_type: str = "int8",
        encoder: OpenVinoEncoder | None = None,
    ) -> None:
        if device == "cpu":
            _keep_large_blocks()
            _use_avx512()
        self._weights = str(weights)
        self._load = {"device": device, "compute_type": compute_type}
        self._threads = threads
        try:
            self._model = WhisperModel(
                self._weights,
                cpu_threads=threads,
                num_workers=1,
                local_files_only=True,
                **self._load,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(reason=error) from error
        size = (weights / "model.bin").stat().st_size
        on_cpu = self._model.model.device == "cpu"
        self._batch_size = max(2, BATCH_BYTES // size) if on_cpu else None
        self._encoder = encoder
        own = f"ctranslate2 {self._model.model.compute_type}"
        self.encoder = own if encoder is None else encoder.name

    def languages(
        self, windows: Sequence[Samples], *, quick: bool = False
    ) -> list[Mapping[str, float]]:
        """See `SpeechEngine.languages`."""
        try:
            if quick:
                return [self._languages(self._encode_briefly(window)) for window in windows]
            return [
                self._languages(encoded)
                for encoded in self._encode([self._features(window) for window in windows])
            ]
        except RuntimeError as error:
            raise EngineFailed(reason=error) from error

    def _languages(self, encoded: ctranslate2.StorageView) -> Mapping[str, float]:
        if not self._model.model.is_multilingual:
            return {"en": 1.0}
        (found,) = self._model.model.detect_language(encoded)
        return {token.strip("<|>"): probability for token, probability in found}

    def transcribe(
        self, windows: Sequence[Samples], options: DecodingOptions
    ) -> list[tuple[Segment, ...]]:
        """See `SpeechEngine.transcribe`."""
        if not windows:
            return []
        tokenizer = self._tokenizer(options)
        try:
            encoded = self._encode_windows(windows)
            first = self._search(encoded, tokenizer, options)
            decoded = [
                self._climb(*each, tokenizer, options)
                for each in zip(windows, encoded, first, strict=True)
            ]
            words = [
                self._align(each, decoding.tokens, len(window), tokenizer)
                for each, decoding, window in zip(encoded, decoded, windows, strict=True)
            ]
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error
        return [
            segments_of(decoding, found, window, keep_words=options.word_timestamps)
            for decoding, found, window in zip(decoded, words, windows, strict=True)
        ]

    def align(
        self,
        windows: Sequence[Samples],
        texts: Sequence[Sequence[str]],
        options: DecodingOptions,
    ) -> list[tuple[Word, ...] | None]:
        """See `SpeechEngine.align`; a text has room for some 440 tokens."""
        self._repair_tokenizer()
        tokenizer = self._tokenizer(options)
        try:
            encoded = self._encode_windows(windows)
            return [
                self._align_text(each, text, window, tokenizer)
                for each, text, window in zip(encoded, texts, windows, strict=True)
            ]
        except (RuntimeError, ValueError) as error:
            raise EngineFailed(reason=error) from error

    def _align_text(
        self,
        encoded: ctranslate2.StorageView,
        text: Sequence[str],
        window: Samples,
        tokenizer: Tokenizer,
    ) -> tuple[Word, ...] | None:
        if not text:
            return ()
        spaced = tokenizer.language_code not in WRITTEN_WITHOUT_SPACES
        tokens = [tokenizer.encode(f" {word.strip()}" if spaced else word or " ") for word in text]
        length = sum(map(len, tokens))
        duration_ms = len(window) // SAMPLES_PER_MS
        # The alignment adds the prompt, the token of no timestamps, and the end.
        room = self._model.max_length - len(tokenizer.sot_sequence) - 2
        if length > room or duration_ms < len(text):
            return None
        frames = max(2, min(FRAMES, len(window) // SAMPLES_PER_FRAME))
        (found,) = self._model.model.align(
            encoded, tokenizer.sot_sequence, [[token for each in tokens for token in each]], frames
        )
        pairs = np.array(found.alignments)
        begins = np.diff(pairs[:, 0], prepend=-1) > 0
        starts_ms = pairs[begins, 1] * 1000 // POSITIONS_PER_S
        words, at = [], 0
        for word, own in zip(text, tokens, strict=True):
            spoken = _without_marks(own, tokenizer)
            span = Span(int(starts_ms[at + spoken.start]), int(starts_ms[at + spoken.stop]))
            said = found.text_token_probs[at + spoken.start : at + spoken.stop]
            words.append(Word(word, span, min(1.0, max(0.0, min(said)))))
            at += len(own)
        timed = without_pauses(words, window)
        spans = spread([word.span for word in timed], Span(0, duration_ms))
        return tuple(
            replace(word, span=span, probability=round(word.probability, 4))
            for word, span in zip(timed, spans, strict=True)
        )

    def _tokenizer(self, options: DecodingOptions) -> Tokenizer:
        if options.context:
            self._repair_tokenizer()
        return Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=options.task,
            language=options.language,
        )

    def _repair_tokenizer(self) -> None:
        """Repair the tokenizer, so that it can encode text; takes a third of the loading time."""
        self._model.hf_tokenizer = with_all_merges(self._model.hf_tokenizer)

    def _features(self, window: Samples) -> NDArray[np.float32]:
        """The log-mel spectrogram, padded to 30 s: shape (mels, 3000)."""
        audio = np.pad(window, (0, max(0, MIN_SAMPLES - len(window))))
        mel: NDArray[np.float32] = pad_or_trim(self._model.feature_extractor(audio)[..., :-1])
        return mel

    def _encode_windows(self, windows: Sequence[Samples]) -> list[ctranslate2.StorageView]:
        """The encoder's output for each window, without most of the padding."""
        encoded = self._encode([self._features(window) for window in windows])
        return [
            without_padding(each, len(window))
            for each, window in zip(encoded, windows, strict=True)
        ]

    def _encode_briefly(self, window: Samples) -> ctranslate2.StorageView:
        """The encoder's output for one window; of a short one with little padding.

        Only CTranslate2 encodes less than 30 s.
        """
        if len(window) > SHORT_S * SAMPLE_RATE:
            return self._encode([self._features(window)])[0]
        padded = np.pad(window, (0, SILENCE_S * SAMPLE_RATE))
        mel = self._model.feature_extractor(padded)[..., :-1]
        return self._model.model.encode(view(mel[np.newaxis]), to_cpu=True)

    def _encode(self, features: Sequence[NDArray[np.float32]]) -> list[ctranslate2.StorageView]:
        """The encoder's output for each window: shape (1, 1500, width), in main memory."""
        batches = [np.ascontiguousarray(each[np.newaxis]) for each in features]
        if self._encoder is not None:
            return [view(self._encoder(batch)) for batch in batches]
        return [self._model.model.encode(view(batch), to_cpu=True) for batch in batches]

    def _generate(
        self,
        encoded: ctranslate2.StorageView,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        temperature: float,
    ) -> list[DecodingResult]:
        """Decode a batch."""
        limit = self._most_tokens(encoded.shape[1])
        prompt = self._model.get_prompt(
            tokenizer,
            tokenizer.encode(f" {options.context}") if options.context else [],
            without_timestamps=True,
        )
        how: dict[str, Any] = (
            {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
            if temperature > 0
            else {"beam_size": options.beam_size}
        )
        results = self._model.model.generate(
            encoded,
            [prompt] * encoded.shape[0],
            return_scores=True,
            return_no_speech_prob=True,
            # CTranslate2 writes at most half of this, and no more than the prompt leaves.
            max_length=min(self._model.max_length, max(2 * limit, limit + len(prompt))),
            suppress_tokens=get_suppressed_tokens(tokenizer, [-1]),
            **how,
        )
        return [self._decoding(result, tokenizer, temperature) for result in results]

    @staticmethod
    def _decoding(
        result: Any, tokenizer: Tokenizer, temperature: float = 0.0, given: int = 0
    ) -> DecodingResult:
        """The result after the first ``given`` tokens, which were forced."""
        tokens = result.sequences_ids[0][given:]
        return DecodingResult(
            text=tokenizer.decode(tokens),
            # CTranslate2's score is the mean over all text tokens, where forced ones are certain,
            # and the end token.
            avg_logprob=result.scores[0] * (given + len(tokens)) / (len(tokens) + 1),
            no_speech_prob=result.no_speech_prob,
            temperature=temperature,
            tokens=tuple(token for token in tokens if token < tokenizer.eot),
        )

    def _most_tokens(self, positions: int) -> int:
        speech_s = positions // POSITIONS_PER_S - PADDING_END_S - SILENCE_S
        longest: int = self._model.max_length // 2
        return min(longest, MOST_SPARE_TOKENS + MOST_TOKENS_PER_S * speech_s)

    def _search(
        self,
        encoded: Sequence[ctranslate2.StorageView],
        tokenizer: Tokenizer,
        options: DecodingOptions,
    ) -> list[DecodingResult | None]:
        """Each window's decoding at temperature 0; None where that is not requested."""
        found: list[DecodingResult | None] = [None for _ in encoded]
        if 0.0 in options.temperatures:
            for indices in self._batches(encoded):
                batch = joined([encoded[index] for index in indices])
                together = self._generate(batch, tokenizer, options, 0.0)
                for index, decoding in zip(indices, together, strict=True):
                    found[index] = decoding
        return found

    def _batches(self, encoded: Sequence[ctranslate2.StorageView]) -> Iterator[list[int]]:
        """The indices of windows that are decoded together: of one length, as memory permits."""
        lengths = [each.shape[1] for each in encoded]
        alike = sorted(range(len(encoded)), key=lengths.__getitem__)
        for _, group in groupby(alike, key=lengths.__getitem__):
            indices = list(group)
            size = self._batch_size or len(indices)
            for first in range(0, len(indices), size):
                yield indices[first : first + size]

    def _climb(
        self,
        window: Samples,
        encoded: ctranslate2.StorageView,
        searched: DecodingResult | None,
        tokenizer: Tokenizer,
        options: DecodingOptions,
    ) -> DecodingResult:
        """A window's decoding; ``searched`` is that at temperature 0."""
        seeded = False

        def decode(temperature: float) -> DecodingResult:
            nonlocal seeded
            if temperature == 0 and searched is not None:
                return searched
            if not seeded:
                self._seed()
                seeded = True
            return self._generate(encoded, tokenizer, options, temperature)[0]

        def detect() -> Detected | None:
            return guards.mismatch(options.language, self._languages(encoded))

        duration_s = len(window) / SAMPLE_RATE
        return guards.climb(options.temperatures, decode, detect, duration_s, sure=SURE_LOGPROB)

    def _seed(self) -> None:
        """Reset the random generator, so that sampling is reproducible.

        CTranslate2 seeds its generator once per worker thread, so only reloaded weights, with new
        threads, draw the same samples again (0.1 s from the page cache; this is rare).
        """
        ctranslate2.set_random_seed(SEED)
        self._model.model = None  # free the old weights first
        self._model.model = ctranslate2.models.Whisper(
            self._weights, intra_threads=self._threads, inter_threads=1, **self._load
        )

    def _align(
        self,
        encoded: ctranslate2.StorageView,
        tokens: Sequence[int],
        samples: int,
        tokenizer: Tokenizer,
        given: int = 0,
    ) -> list[Word]:
        """The words after the first ``given`` tokens with their times, by dynamic time warping.

        ``samples`` is the length of the audio. One window at a time: in a batch, padding would move
        the times, and it is not faster.
        """
        if len(tokens) == given:
            return []
        frames = max(2, min(FRAMES, samples // SAMPLES_PER_FRAME))
        (alignment,) = self._model.find_alignment(tokenizer, [list(tokens)], encoded, frames)
        alignment = words_after(given, alignment, tokenizer)
        # The pause after a sentence is aligned to its mark: only the mark joins the word.
        merge_punctuations(alignment, PREPENDED, APPENDED)
        return [_word(timing) for timing in alignment if timing["word"]]


def with_all_merges(tokenizer: Any) -> Any:
    """A tokenizer (``tokenizers.Tokenizer``) with the vocabulary's first merge, " t".

    Systran's tiny, base, small and medium weights lack it. They split " the" into " " and "the",
    which Whisper has hardly ever seen, so that every prompt misleads it: hotwords, an initial
    prompt, or previous text.
    """
    known = tokenizer.token_to_id("\u0120t") is not None
    if not known or len(tokenizer.encode(" t", add_special_tokens=False).ids) == 1:
        return tokenizer
    document = json.loads(tokenizer.to_str())
    merges = document["model"]["merges"]
    merges.insert(0, ["\u0120", "t"] if isinstance(merges[0], list) else "\u0120 t")
    return type(tokenizer).from_str(json.dumps(document))


def view(array: NDArray[np.float32]) -> ctranslate2.StorageView:
    """An array in CTranslate2's form."""
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


def without_padding(encoded: ctranslate2.StorageView, samples: int) -> ctranslate2.StorageView:
    """The encoder's output for so many samples of speech, without the middle of the padding.

    Shape (1, positions, width); the number of positions depends on ``samples`` alone.
    """
    kept_s = max(LEAST_S, STEP_S * math.ceil((samples / SAMPLE_RATE + SILENCE_S) / STEP_S))
    if kept_s + PADDING_END_S >= MAX_WINDOW_MS // 1000:
        return encoded
    array = np.asarray(encoded)
    speech, end = array[:, : kept_s * POSITIONS_PER_S], array[:, -PADDING_END_S * POSITIONS_PER_S :]
    return view(np.concatenate([speech, end], axis=1))


def joined(encoded: Sequence[ctranslate2.StorageView]) -> ctranslate2.StorageView:
    """All windows as one batch: shape (windows, positions, width)."""
    return view(np.concatenate([np.asarray(each) for each in encoded]))


def words_after(
    given: int, alignment: list[dict[str, Any]], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The words after the first ``given`` tokens; a word with tokens of both sides is cut."""
    kept, tokens = [], 0
    for timing in alignment:
        tokens += len(timing["tokens"])
        own = timing["tokens"][-(tokens - given) :] if tokens > given else []
        if own:
            cut = len(own) < len(timing["tokens"])
            kept.append({**timing, "word": tokenizer.decode(own), "tokens": own} if cut else timing)
    return kept


def _without_marks(tokens: Sequence[int], tokenizer: Tokenizer) -> range:
    """The tokens of a word that are said: pauses are aligned to its marks. All, if only marks."""
    pieces = [tokenizer.decode([token]).strip() for token in tokens]
    first, last = 0, len(pieces)
    while first < last and pieces[first] in PREPENDED:
        first += 1
    while first < last and pieces[last - 1] in APPENDED:
        last -= 1
    return range(first, last) if first < last else range(len(pieces))


def _word(timing: dict[str, Any]) -> Word:
    start, end = round(timing["start"] * 1000), round(timing["end"] * 1000)
    probability = min(1.0, max(0.0, float(timing["probability"])))
    return Word(timing["word"], Span(start, max(start, end)), probability)


def _keep_large_blocks() -> None:
    """Let glibc reuse the encoder's large buffers instead of mapping them anew in every layer.

    A third of the encoder's time went into page faults: by default glibc maps and unmaps each block
    above 32 MB, in threads' arenas even above that arena's 64 MB (mallopt(3)). One arena without
    mapping and trimming keeps them; the process stays at its peak size.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    # From glibc's malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
    for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
        mallopt(parameter, value)


def _use_avx512() -> None:
    """Let CTranslate2 use AVX-512 on all processors that have it, not only on Intel's.

    It takes 11 % off the encoder's time on an AMD EPYC (Zen 5). Must be set before the first
    weights load; the user's own setting stays.
    """
    if {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= processor_flags():
        os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
