"""Names of files are safe and distinct wherever they are unpacked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.filenames import MAX_BYTES, display_name, distinct_names

names = st.text(max_size=300) | st.sampled_from(["talk", "Talk", "..", "", "a/b", "x" * 300])


@given(st.lists(names, max_size=30))
def test_names_in_an_archive_are_distinct_and_safe(stems: list[str]) -> None:
    found = distinct_names(stems, "srt")
    assert len(found) == len(stems)
    assert len({name.casefold() for name in found}) == len(found)
    for name in found:
        assert name == display_name(name)
        assert name.endswith(".srt")
        assert len(name.encode()) <= MAX_BYTES
        assert not set('<>:"|?*/\\') & set(name)


def test_a_later_one_of_the_same_name_gets_a_number() -> None:
    assert distinct_names(["a", "b", "A", "a", "a (2)"], "txt") == [
        "a.txt",
        "b.txt",
        "A (2).txt",
        "a (3).txt",
        "a (2) (2).txt",
    ]
    long = distinct_names(["é" * 200, "é" * 200], "docx")
    assert long == [f"{'é' * 125}.docx", f"{'é' * 123} (2).docx"]
