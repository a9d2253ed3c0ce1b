"""Read stdin aloud with eSpeak NG: ``python espeak.py VOICE WORDS_PER_MINUTE < text > wave``.

Writes the sample rate as four little-endian bytes, then mono 16-bit PCM. A program of its own
because eSpeak's synthesizer keeps state between utterances: only a fresh process says the same
text the same way (measured with espeakng-loader 0.2.4; its random seed and re-initialising do
not help).
"""

from __future__ import annotations

import ctypes
import sys

from espeakng_loader import get_data_path, get_library_path

# From espeak-ng/src/include/espeak-ng/speak_lib.h
RETRIEVAL = 1
CHARS_UTF8 = 1
RATE = 1
DONT_EXIT = 0x8000


def main(voice: str, words_per_minute: str) -> None:
    """Raises SystemExit when eSpeak NG cannot start or has no such voice."""
    library = ctypes.CDLL(str(get_library_path()))
    rate = library.espeak_Initialize(RETRIEVAL, 0, str(get_data_path()).encode(), DONT_EXIT)
    if rate <= 0:
        sys.exit("eSpeak NG could not be initialised")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        sys.exit(f"eSpeak NG has no voice {voice!r}")
    library.espeak_SetParameter(RATE, int(words_per_minute), 0)

    wave = bytearray()

    def keep(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            wave.extend(ctypes.string_at(samples, count * 2))
        return 0

    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    callback = signature(keep)
    library.espeak_SetSynthCallback(callback)
    text = sys.stdin.buffer.read()
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    sys.stdout.buffer.write(rate.to_bytes(4, "little") + wave)


if __name__ == "__main__":
    main(*sys.argv[1:])
