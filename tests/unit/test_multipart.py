from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.headers import attachment
from api.http.multipart import MAX_IGNORED, MAX_OPTION_BYTES, FormReader, file_name
from common.errors import Malformed, TooLarge, Unsupported
from common.filenames import display_name

BOUNDARY = "----edge"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
OPTIONS = ("language", "model")


def part(head: str, body: bytes) -> bytes:
    edge = f"--{BOUNDARY}\r\n".encode()
    return edge + f"Content-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def reader() -> FormReader:
    return FormReader(TYPE, file_field="file", known=OPTIONS)


def read(body: bytes, step: int = 1 << 16) -> tuple[FormReader, bytes]:
    it = reader()
    pieces = [
        piece
        for start in range(0, len(body), step)
        for piece in it.feed(body[start : start + step])
    ]
    it.finish()
    return it, b"".join(pieces)


@given(
    content=st.binary(max_size=300)
    | st.text(alphabet="\r\n-edg", max_size=80).map(str.encode)
    | st.just(f"\r\n--{BOUNDARY}"[:-1].encode() * 5),
    before=st.booleans(),
    step=st.integers(1, 70),
)
def test_a_file_arrives_unchanged_however_it_is_cut(
    content: bytes, before: bool, step: int
) -> None:
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + content:
        return
    option = part('name="language"', "tiếng Việt".encode())
    file = part('name="file"; filename="a.wav"', content)
    it, out = read(form(*((option, file) if before else (file, option))), step)
    assert out == content
    assert it.options == {"language": "tiếng Việt"}
    assert (it.filename, it.file_begun, it.file_ended) == ("a.wav", True, True)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail_in_its_own_way(body: bytes) -> None:
    it = reader()
    try:
        it.feed(body)
        it.finish()
    except (Malformed, TooLarge, Unsupported):
        return


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "multipart/form-data", f"{TYPE}{'x' * 300}"],
)
def test_a_body_that_is_no_form_is_malformed(content_type: str | None) -> None:
    with pytest.raises(Malformed):
        FormReader(content_type, file_field="file", known=OPTIONS)


@pytest.mark.parametrize(
    ("body", "error", "named"),
    [
        (part('name="file"; filename="a"', b"audio")[:-2], Malformed, None),
        (form(part('name="file"', b"a"), part('name="file"', b"b")), Malformed, "file"),
        (
            form(part('name="language"', b"vi"), part('name="language"', b"en")),
            Malformed,
            "language",
        ),
        (form(part('name="language"', b"\xff")), Malformed, "language"),
        (part('name="model"', b"x" * (MAX_OPTION_BYTES + 1)), TooLarge, "model"),
    ],
    ids=["cut off", "two files", "an option twice", "no text", "too long"],
)
def test_a_wrong_form_is_rejected_with_the_name_of_its_part(
    body: bytes, error: type[Exception], named: str | None
) -> None:
    with pytest.raises(error, match=named):
        read(body)


def test_an_unknown_part_is_rejected_before_it_is_read() -> None:
    with pytest.raises(Unsupported, match="diarise"):
        reader().feed(part('name="diarise"', b"yes"))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ('name="file"', None),
        ('name="file"; filename=""', ""),
        ('name="file"; filename="a b.wav"', "a b.wav"),
        ("name=file; filename=\"x\"; filename*=UTF-8''%E1%BA%BF%20b.wav", "ế b.wav"),
        ("name=file; filename*=iso-8859-1'en'%E9.wav", "é.wav"),
        ("name=file; filename*0*=UTF-8''%E1%BA; filename*1*=%BF.wav", "ế.wav"),
        ("name=file; filename*=no-such-charset''%41", "A"),
        ('name="file"; filename="a;filename*=UTF-8\'\'b"', "a;filename*=UTF-8''b"),
        # As browsers write "50 % off".wav, and a name of two lines.
        ('name="file"; filename="%2250 % off%22.wav"', '"50 % off".wav'),
        ('name="file"; filename="a%0D%0Ab%20.wav"', "a\r\nb%20.wav"),
    ],
)
def test_file_names_are_read_however_they_are_written(head: str, name: str | None) -> None:
    assert file_name(f"form-data; {head}".encode()) == name


@given(st.binary(max_size=80))
def test_no_header_breaks_the_reading_of_names(header: bytes) -> None:
    file_name(b"form-data; filename*" + header)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("talk.mp3", "talk.mp3"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\talk.mp3", "talk.mp3"),
        ("a\0b\r\n.wav", "ab.wav"),
        ("e\u0302\u0301.wav", "ế.wav"),
        ("exe.\u202e3pm", "exe.3pm"),
        ("..", "recording"),
        ("x/", "recording"),
        ("", "recording"),
        (None, "recording"),
    ],
)
def test_a_shown_name_is_one_line_and_no_path(sent: str | None, shown: str) -> None:
    assert display_name(sent) == shown


def test_a_long_name_is_cut_between_letters() -> None:
    assert display_name("ế" * 300) == "ế" * 85


@given(st.text())
def test_any_name_can_be_shown_and_sent_back(sent: str) -> None:
    name = display_name(sent)
    assert name
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\\0\r\n")
    header = attachment(name, "srt")
    assert header.isascii()
    assert header.isprintable()


def test_a_list_comes_as_often_as_it_may() -> None:
    it = FormReader(TYPE, file_field="file", known=OPTIONS, repeatable=("kinds[]",))
    it.feed(form(part('name="kinds[]"', b"word"), part('name="kinds[]"', b"segment")))
    it.finish()
    assert it.lists == {"kinds[]": ["word", "segment"]}
    assert it.options == {}


def test_a_list_has_an_end() -> None:
    it = FormReader(TYPE, file_field="file", known=OPTIONS, repeatable=("kinds[]",))
    with pytest.raises(Malformed, match=r"kinds\[\] occurs more than 16 times"):
        it.feed(form(*[part('name="kinds[]"', b"word")] * 17))


def test_unknown_parts_are_dropped_where_they_are_ignored() -> None:
    it = FormReader(TYPE, file_field="file", known=OPTIONS, ignores_unknown=True)
    long = b"x" * (MAX_OPTION_BYTES + 1)
    unknown = [part(f'name="habit{number}"; filename="a"', long) for number in range(40)]
    body = form(*unknown, part('name="file"', b"audio"), part('name="user"', b"\xff"))
    assert b"".join(it.feed(body)) == b"audio"
    it.finish()
    assert it.options == {}
    assert it.ignored == [f"habit{number}" for number in range(MAX_IGNORED)]
