"""Guards between a decoder's output and the transcript: pure functions without an engine.

Whisper fails in known ways, each with its own guard (for speech that it leaves out, see
`common.asr.redecoding`):

- **A failed decoding** (loops, gibberish). `needs_retry` detects it; the engine then decodes the
  window again, alone, at rising temperatures (`climb`), and the result carries ``retried``. No
  retry for a window in another language than requested: no temperature helps.
- **A loop at every temperature.** `collapse_repeats` keeps the first rounds of the repeated
  phrase, and the segment carries ``repetitive``. Emphasis ("no, no, no") stays as it is.
- **A hallucination on silence.** A segment is *dropped* only in two cases: the decoder itself
  reports silence (`is_silence`, openai/whisper's rule), or the whole segment is a phrase that
  Whisper is known to invent (`is_known_phrase`; arXiv 2501.11378) *and* the evidence is for silence
  (`is_hallucination`). A "thank you" in audible speech is never dropped.
- **A hallucination on very short audio.** A tenth of a second has no room for "Thank you.": text
  that nobody can say so fast (`is_too_fast`) is dropped.

Everything else stays in the text; flags express doubt:

=====================  ============================================================================
``retried``            the first decoding failed, and this text is from a higher temperature; or it
                       left speech out, and this text is from decoding the window in pieces
``low_confidence``     the window's mean log probability is below -1, or its words' mean probability
                       below 0.3, even after retries
``repetitive``         the text still compresses more than 2.4 times, or a loop was collapsed
``likely_silence``     the decoder's no-speech probability is above 0.6
``language_mismatch``  the decoding failed or is unsure, and the window is in another language than
                       requested
``stock_phrase``       it contains a phrase of video channels that Whisper invents over music and
                       noise, such as "Hãy subscribe cho kênh ..."
=====================  ============================================================================
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from common.domain.detection import LANGUAGE_MISMATCH
from common.domain.values import Detected, Word

# openai/whisper's thresholds, transcribe.py
MAX_COMPRESSION_RATIO: Final = 2.4
MIN_AVG_LOGPROB: Final = -1.0
MAX_NO_SPEECH_PROB: Final = 0.6

MIN_WORD_PROBABILITY: Final = 0.3
"""With a lower mean over a segment's words, its text is more often wrong than right."""

QUIET_DBFS: Final = -60.0
"""No speech is this quiet; 16-bit room noise of a good microphone is."""

RETRIED: Final = "retried"
LOW_CONFIDENCE: Final = "low_confidence"
REPETITIVE: Final = "repetitive"
LIKELY_SILENCE: Final = "likely_silence"
STOCK_PHRASE: Final = "stock_phrase"
DOUBTFUL: Final = frozenset({LOW_CONFIDENCE, REPETITIVE, LIKELY_SILENCE, LANGUAGE_MISMATCH})
"""Text with one of these flags may be invented: it covers no speech."""


def compression_ratio(text: str) -> float:
    """How many times zlib shrinks ``text`` (UTF-8 bytes); 1.0 for no text at all."""
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded)) if encoded else 1.0


@dataclass(frozen=True, slots=True)
class DecodingResult:
    """One attempt at one window.

    ``avg_logprob`` is the mean over its tokens, in nats; ``tokens`` are the engine's own.
    ``detected`` is the window's language where it is not the requested one.
    """

    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float = 0.0
    tokens: tuple[int, ...] = ()
    detected: Detected | None = None

    @property
    def compression_ratio(self) -> float:
        return compression_ratio(self.text.strip())

    @property
    def words(self) -> list[str]:
        return self.text.split()


def is_silence(decoding: DecodingResult) -> bool:
    """Whether the decoder reports no speech, and a low probability of its own text."""
    return decoding.no_speech_prob > MAX_NO_SPEECH_PROB and decoding.avg_logprob < MIN_AVG_LOGPROB


def needs_retry(decoding: DecodingResult) -> bool:
    """Whether to decode the window again at a higher temperature: it loops, or is improbable."""
    if is_silence(decoding):
        return False
    return decoding.avg_logprob < MIN_AVG_LOGPROB or loops(decoding)


def loops(decoding: DecodingResult) -> bool:
    """Whether the text repeats itself."""
    return decoding.compression_ratio > MAX_COMPRESSION_RATIO or has_loop(decoding.words)


def best(attempts: Sequence[DecodingResult]) -> DecodingResult:
    """The first of the failed attempts that does not loop, else the most probable.

    Higher temperatures break loops. Where the audio itself is unclear, their samples are hardly
    more probable than the beam search, and only more random; faster-whisper takes the most
    probable of them.
    """
    for attempt in attempts:
        if not loops(attempt):
            return attempt
    return max(attempts, key=lambda attempt: attempt.avg_logprob)


# --- temperature fallback ---------------------------------------------------------------------

TOKENS_PER_S: Final = 14
"""No speech is faster (read Vietnamese: 10): a decoder that writes more is in a loop."""
SPARE_TOKENS: Final = 24
FAILURES: Final = 3
"""A window may cost so many failed attempts of the greatest length of speech."""

LIKELY: Final = 0.5
"""A window is in another language if that has at least this probability, ..."""
RULED_OUT: Final = 0.05
"""... and the requested language at most this one. Measured with base on English decoded as
Vietnamese: below 0.001 in 20 of 20 windows, also where English had only 0.7."""


def climb(
    temperatures: Iterable[float],
    decode: Callable[[float], DecodingResult],
    detect: Callable[[], Detected | None],
    duration_s: float,
    *,
    sure: float = MIN_AVG_LOGPROB,
) -> DecodingResult:
    """Decode a window at rising temperatures until an attempt succeeds.

    The number of attempts depends on the attempts and the window's length, not on the clock: a
    window has the same text on every machine. All attempts together may have as many tokens as fast
    speech of three times ``duration_s``. After a loop the next temperature is skipped, as so small
    a step hardly ever ends a loop.

    Args:
        temperatures: In ascending order.
        decode: Returns the attempt at a temperature.
        detect: Returns the window's language where it is not the requested one. It is called if the
            first attempt fails, or its mean log probability is below ``sure``; with another
            language, no other attempt is made.
        duration_s: The window's length.
        sure: At least -1.

    Returns:
        The first successful attempt, else the best of all.
    """
    left = FAILURES * (SPARE_TOKENS + TOKENS_PER_S * duration_s)
    attempts: list[DecodingResult] = []
    skips = False
    for temperature in temperatures:
        if skips:
            skips = False
            continue
        attempt = decode(temperature)
        fails = needs_retry(attempt)
        if not attempts and (fails or attempt.avg_logprob < sure) and (detected := detect()):
            return replace(attempt, detected=detected)
        if not fails:
            return attempt
        attempts.append(attempt)
        left -= len(attempt.tokens)
        if left <= 0:
            break
        skips = loops(attempt)
    return best(attempts)


def mismatch(requested: str, languages: Mapping[str, float]) -> Detected | None:
    """The language of a window, where it certainly is not the requested one.

    ``languages`` has the probability of each.
    """
    language, probability = max(languages.items(), key=lambda item: item[1])
    if probability < LIKELY or languages.get(requested, 0.0) > RULED_OUT:
        return None
    return Detected(language, round(probability, 3))


# --- loops ----------------------------------------------------------------------------------

MAX_LOOP_WORDS: Final = 16
KEPT_ROUNDS: Final = 2


def _allowed_rounds(words: int) -> int:
    """How often people repeat a phrase of so many words: "no" more often than a clause."""
    return 7 if words == 1 else 5 if words == 2 else 3


def _loops(keys: Sequence[str]) -> Iterable[tuple[int, int, int]]:
    """Stretches that repeat one phrase: (start, phrase length, rounds)."""
    start = 0
    while start < len(keys):
        for length in range(1, min(MAX_LOOP_WORDS, (len(keys) - start) // 2) + 1):
            phrase = keys[start : start + length]
            rounds = 1
            while keys[start + rounds * length : start + (rounds + 1) * length] == phrase:
                rounds += 1
            if rounds > _allowed_rounds(length):
                yield start, length, rounds
                start += length * rounds
                break
        else:
            start += 1


def has_loop(words: Sequence[str]) -> bool:
    """Whether a phrase is repeated back to back more often than people do."""
    return any(True for _ in _loops([_key(word) for word in words]))


def collapse_repeats(words: Sequence[Word]) -> tuple[tuple[Word, ...], bool]:
    """The words with only the first two rounds of every loop kept, and whether there was one."""
    kept: list[Word] = []
    done = 0
    for start, length, rounds in _loops([_key(word.text) for word in words]):
        kept += words[done : start + KEPT_ROUNDS * length]
        done = start + rounds * length
    kept += words[done:]
    return tuple(kept), done > 0


# --- hallucinations on silence ----------------------------------------------------------------


STOCK_PHRASES: Final = (
    # English; most are in the table of arXiv 2501.11378
    r"(thank you|thanks)( (so|very) much)? for (watching|listening|viewing)( .{0,40})?",
    r"see you( (guys )?(next time|in the next (video|one)))",
    r"(please )?(like and )?subscribe( to (my|our|the) channel)( .{0,40})?",
    r"don t forget to (like|subscribe).{0,60}",
    r"(sub)?titles? by .{0,60}",
    r"(transcript(ion|ed)?|translat(ed|ion)|captions?|captioning) by .{0,60}",
    r".{0,40}amara ?org.{0,40}",
    # Vietnamese; faster-whisper issues 506 and 843
    r"(các bạn )?(hãy|nhớ|đừng quên)?( ?các bạn)? ?(subscribe|đăng k[ýí])( cho)? k[eê]nh.{0,120}",
    r".{0,30}ghiền mì.{0,80}",
    r".{0,20}để không bỏ lỡ.{0,60}",
    r"(xin )?(cảm|cám) ơn( các bạn| quý vị)?( đã)? ?(theo dõi|xem|lắng nghe|ủng hộ).{0,60}",
    r"(phụ đề|biên dịch|dịch)( được thực hiện)? (bởi|by).{0,60}",
)
"""Phrases of video channels that Whisper invents, also in the middle of a text, as regular
expressions over `plain` text."""

KNOWN_PHRASES: Final = (
    *STOCK_PHRASES,
    # English; most are in the same table, the others were seen on noise with base
    r"you( you)*",
    r"so",
    r"bye( bye)*",
    r"(okay|oh|uh|um|hmm|ah)",
    r"i ?m sorry",
    r"thank you( (so|very) much)?",
    r"thanks",
    r"(i ?ll )?see you( (guys )?(next time|later|soon|in the next (video|one)))?",
    r"(please )?(like and )?subscribe( to (my|our|the) channel)?( .{0,40})?",
    r"(the )?end",
    r"(music|applause|laughter|silence|blank audio)",
    # Vietnamese; seen on noise with base
    r"(xin )?(cảm|cám) ơn( các bạn)?",
    r"(xin )?(chào|tạm biệt)( các bạn)?",
    r"(hẹn gặp lại|chúc các bạn).{0,60}",
    r"cái gì( cái gì| vậy)*",
)
"""Whole segments that Whisper invents, in the same form."""

_KNOWN: Final = re.compile("|".join(f"(?:{phrase})" for phrase in KNOWN_PHRASES))
_STOCK: Final = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in STOCK_PHRASES))


def plain(text: str) -> str:
    """The text to match phrases on: lower case, composed letters, no punctuation."""
    composed = unicodedata.normalize("NFC", text).casefold()
    letters = (char if char.isalnum() or unicodedata.combining(char) else " " for char in composed)
    return " ".join("".join(letters).split())


def is_known_phrase(text: str) -> bool:
    """Whether all of ``text`` is a phrase that Whisper is known to invent on silence."""
    return _KNOWN.fullmatch(plain(text)) is not None


def has_stock_phrase(text: str) -> bool:
    """Whether ``text`` contains a phrase of video channels that Whisper is known to invent."""
    return _STOCK.search(plain(text)) is not None


def is_hallucination(text: str, decoding: DecodingResult, loudness_dbfs: float) -> bool:
    """Whether to drop a segment of the window: a known phrase, where anything indicates silence."""
    may_be_silence = (
        decoding.no_speech_prob > MAX_NO_SPEECH_PROB
        or decoding.avg_logprob < MIN_AVG_LOGPROB
        or loudness_dbfs < QUIET_DBFS
    )
    return may_be_silence and is_known_phrase(text)


MAX_LETTERS_PER_S: Final = 30
SPARE_LETTERS: Final = 3
"""Fast speech has 20 letters a second; words may be cut off at both ends."""


def is_too_fast(text: str, duration_ms: int) -> bool:
    """Whether ``text`` is too long to be said in so short a window."""
    letters = sum(char.isalnum() for char in text)
    return letters > SPARE_LETTERS + MAX_LETTERS_PER_S * duration_ms / 1000


def doubts(
    decoding: DecodingResult, text: str, word_probability: float, *, collapsed: bool
) -> tuple[str, ...]:
    """The flags of a segment with this ``text``; ``decoding`` is that of its whole window."""
    no_voice = decoding.no_speech_prob > MAX_NO_SPEECH_PROB
    flags = {
        RETRIED: decoding.temperature > 0,
        LOW_CONFIDENCE: decoding.avg_logprob < MIN_AVG_LOGPROB
        or word_probability < MIN_WORD_PROBABILITY,
        REPETITIVE: collapsed or compression_ratio(text.strip()) > MAX_COMPRESSION_RATIO,
        LIKELY_SILENCE: no_voice,
        LANGUAGE_MISMATCH: decoding.detected is not None,
        STOCK_PHRASE: has_stock_phrase(text),
    }
    return tuple(flag for flag, raised in flags.items() if raised)


def _key(word: str) -> str:
    return plain(word) or word.strip()
