"""Errors of requests name what is wrong."""

from __future__ import annotations

import pytest

from api.http.problems import validated
from api.streams.options import StreamOptions
from common.errors import Unsupported


@pytest.mark.parametrize("name", ["nonsense", "query", "path", "header", "body"])
def test_an_unknown_option_is_named_whatever_its_name(name: str) -> None:
    with pytest.raises(Unsupported) as error:
        validated(StreamOptions, {name: "x"})
    assert error.value.details["field"] == name
