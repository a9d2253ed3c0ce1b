"""The languages of multilingual Whisper, for checking what a request asks for.

Source: openai/whisper, whisper/tokenizer.py (LANGUAGES); `yue` came with large-v3 and is the
only one that older weights lack.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

AUTO: Final = "auto"
"""What a request says in place of a code to have the language detected."""

LANGUAGES: Final = MappingProxyType(
    {
        "af": "Afrikaans",
        "am": "Amharic",
        "ar": "Arabic",
        "as": "Assamese",
        "az": "Azerbaijani",
        "ba": "Bashkir",
        "be": "Belarusian",
        "bg": "Bulgarian",
        "bn": "Bengali",
        "bo": "Tibetan",
        "br": "Breton",
        "bs": "Bosnian",
        "ca": "Catalan",
        "cs": "Czech",
        "cy": "Welsh",
        "da": "Danish",
        "de": "German",
        "el": "Greek",
        "en": "English",
        "es": "Spanish",
        "et": "Estonian",
        "eu": "Basque",
        "fa": "Persian",
        "fi": "Finnish",
        "fo": "Faroese",
        "fr": "French",
        "gl": "Galician",
        "gu": "Gujarati",
        "ha": "Hausa",
        "haw": "Hawaiian",
        "he": "Hebrew",
        "hi": "Hindi",
        "hr": "Croatian",
        "ht": "Haitian Creole",
        "hu": "Hungarian",
        "hy": "Armenian",
        "id": "Indonesian",
        "is": "Icelandic",
        "it": "Italian",
        "ja": "Japanese",
        "jw": "Javanese",
        "ka": "Georgian",
        "kk": "Kazakh",
        "km": "Khmer",
        "kn": "Kannada",
        "ko": "Korean",
        "la": "Latin",
        "lb": "Luxembourgish",
        "ln": "Lingala",
        "lo": "Lao",
        "lt": "Lithuanian",
        "lv": "Latvian",
        "mg": "Malagasy",
        "mi": "Maori",
        "mk": "Macedonian",
        "ml": "Malayalam",
        "mn": "Mongolian",
        "mr": "Marathi",
        "ms": "Malay",
        "mt": "Maltese",
        "my": "Burmese",
        "ne": "Nepali",
        "nl": "Dutch",
        "nn": "Nynorsk",
        "no": "Norwegian",
        "oc": "Occitan",
        "pa": "Punjabi",
        "pl": "Polish",
        "ps": "Pashto",
        "pt": "Portuguese",
        "ro": "Romanian",
        "ru": "Russian",
        "sa": "Sanskrit",
        "sd": "Sindhi",
        "si": "Sinhala",
        "sk": "Slovak",
        "sl": "Slovenian",
        "sn": "Shona",
        "so": "Somali",
        "sq": "Albanian",
        "sr": "Serbian",
        "su": "Sundanese",
        "sv": "Swedish",
        "sw": "Swahili",
        "ta": "Tamil",
        "te": "Telugu",
        "tg": "Tajik",
        "th": "Thai",
        "tk": "Turkmen",
        "tl": "Tagalog",
        "tr": "Turkish",
        "tt": "Tatar",
        "uk": "Ukrainian",
        "ur": "Urdu",
        "uz": "Uzbek",
        "vi": "Vietnamese",
        "yi": "Yiddish",
        "yo": "Yoruba",
        "yue": "Cantonese",
        "zh": "Chinese",
    }
)
"""Code to English name, in the codes' order."""

_OTHER_NAMES: Final = MappingProxyType(
    {
        # Other names (whisper/tokenizer.py, TO_LANGUAGE_CODE).
        "castilian": "es",
        "flemish": "nl",
        "haitian": "ht",
        "letzeburgesch": "lb",
        "mandarin": "zh",
        "moldavian": "ro",
        "moldovan": "ro",
        "myanmar": "my",
        "panjabi": "pa",
        "pushto": "ps",
        "sinhalese": "si",
        "valencian": "ca",
        # Codes of ISO 639 for which Whisper has others, or none of their own.
        "cmn": "zh",
        "fil": "tl",
        "in": "id",
        "iw": "he",
        "jv": "jw",
        "nb": "no",
        # ISO 639-2 and 639-3, of the languages most asked for.
        "ara": "ar",
        "chi": "zh",
        "deu": "de",
        "eng": "en",
        "fra": "fr",
        "fre": "fr",
        "ger": "de",
        "hin": "hi",
        "ind": "id",
        "ita": "it",
        "jpn": "ja",
        "kor": "ko",
        "por": "pt",
        "rus": "ru",
        "spa": "es",
        "tha": "th",
        "vie": "vi",
        "zho": "zh",
    }
)
_CODES: Final = MappingProxyType(
    {
        **{name.lower(): code for code, name in LANGUAGES.items()},
        **_OTHER_NAMES,
        **{code: code for code in LANGUAGES},
    }
)


def language_code(name: str) -> str | None:
    """Whisper's code for a language as people write it, in any case; None where it has none.

    That is a code (``vi``, ``eng``), a locale (``en-US``, ``pt_BR``), or a name (``English``).
    """
    written = name.strip().lower()
    return _CODES.get(written) or _CODES.get(written.replace("_", "-").partition("-")[0])


WRITTEN_WITHOUT_SPACES: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Here Whisper's words carry no leading space (whisper/tokenizer.py, split_to_word_tokens)."""
