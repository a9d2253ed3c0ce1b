"""Parses a multipart form while it is received; the file's bytes pass through.

Sans-IO: bytes in, the file's bytes out. Sources: RFC 7578 (multipart/form-data), RFC 2231 and 5987
(names in other alphabets, which RFC 7578 forbids and clients send anyway).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from email.utils import collapse_rfc2231_value, decode_params, unquote
from urllib.parse import unquote as unquote_url

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.http.fields import unsupported
from common.errors import Malformed, TooLarge

MAX_OPTION_BYTES = 16 * 1024
MAX_REPEATED = 16
MAX_IGNORED = 32
"""How many names of unknown parts are kept."""
MAX_HEADER_BYTES = 16 * 1024
"""A name of 300 Vietnamese letters takes up to 5,400 bytes, percent-encoded."""

_BROWSERS_ESCAPES = re.compile("%(22|0D|0A)", re.IGNORECASE)
_PARAMETER = re.compile(r";\s*([^\s=;\"]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;]*)")


class FormReader:
    """A form with one file, in the part named ``file_field``, and options before or after it.

    ``options`` has what was sent, by name; ``lists`` those of ``repeatable``, which may come more
    than once. With ``ignores_unknown`` parts of other names are dropped, and ``ignored`` has these
    names. ``filename`` is as the client sent it: do not trust it.

    Raises:
        Malformed: the content type has no boundary.
    """

    def __init__(
        self,
        content_type: str | None,
        *,
        file_field: str,
        known: Collection[str],
        repeatable: Collection[str] = (),
        ignores_unknown: bool = False,
    ) -> None:
        kind, parameters = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise Malformed(reason="the body must be multipart/form-data")
        if not parameters.get(b"boundary"):
            raise Malformed(reason="the content type names no boundary")
        self.options: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {}
        self.ignored: list[str] = []
        self.filename: str | None = None
        self.file_begun = False
        self.file_ended = False
        self._file_field = file_field
        self._known = known
        self._repeatable = repeatable
        self._ignores_unknown = ignores_unknown
        self._ignores_part = False
        self._ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name = ""
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(
                parameters[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise Malformed(reason="the boundary is too long") from error

    def feed(self, data: bytes) -> list[bytes]:
        """Parse the next piece of the body; returns the parts of it that belong to the file.

        Raises:
            Malformed: it is not a multipart form, or a part is repeated.
            Unsupported: a part has a name that is not known.
            TooLarge: an option is longer than `MAX_OPTION_BYTES`.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Malformed(reason="the body is not a multipart form") from error
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """The body has ended.

        Raises:
            Malformed: the form has not.
        """
        if not self._ended:
            raise Malformed(reason="the form is incomplete")

    # --- the parser's callbacks -----------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._header.clear()
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = _text(parameters.get(b"name", b""), "the name of a part")
        if not name:
            raise Malformed(reason="a part has no name")
        self._ignores_part = False
        if name not in (self._file_field, *self._repeatable) and name not in self._known:
            if not self._ignores_unknown:
                raise unsupported(name[:100], self._known)
            self._ignores_part = True
            if name[:100] not in self.ignored and len(self.ignored) < MAX_IGNORED:
                self.ignored.append(name[:100])
            return
        if len(self.lists.get(name, ())) == MAX_REPEATED:
            raise Malformed(reason=f"{name} occurs more than {MAX_REPEATED} times")
        if name in self.options or (name == self._file_field and self.file_begun):
            raise Malformed(reason=f"{name} occurs twice")
        self._name = name
        if name == self._file_field:
            self.file_begun = True
            self.filename = file_name(self._disposition)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._ignores_part:
            return
        if self._name == self._file_field:
            self._pieces.append(data if start == 0 and end == len(data) else data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_OPTION_BYTES:
            raise TooLarge(field=self._name, limit=f"{MAX_OPTION_BYTES} bytes", value="more")

    def _on_part_end(self) -> None:
        if self._ignores_part:
            return
        if self._name == self._file_field:
            self.file_ended = True
            return
        value = _text(bytes(self._value), self._name)
        if self._name in self._repeatable:
            self.lists.setdefault(self._name, []).append(value)
        else:
            self.options[self._name] = value

    def _on_end(self) -> None:
        self._ended = True


def file_name(disposition: bytes) -> str | None:
    """The file name in a Content-Disposition header, the extended form before the plain one."""
    parameters = _PARAMETER.findall(disposition.decode("latin-1"))
    extended = [(key, value) for key, value in parameters if key.lower().startswith("filename*")]
    if extended:
        # decode_params passes over its first pair, the header's own value, and quotes what it joins
        for _, value in decode_params([("", ""), *extended])[1:]:
            if name := unquote(collapse_rfc2231_value(value, errors="replace")):
                return name
    plain = parse_options_header(disposition)[1].get(b"filename")
    if plain is None:
        return None
    # Browsers escape these three, and nothing else (WHATWG HTML, multipart/form-data encoding).
    return _BROWSERS_ESCAPES.sub(lambda it: unquote_url(it[0]), plain.decode("utf-8", "replace"))


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(reason=f"{what} is not UTF-8") from error
