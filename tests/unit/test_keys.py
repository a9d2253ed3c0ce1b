"""Keys as text, and how much may be asked for with one."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.auth.exposure import is_loopback, listening_host
from common.domain.keys import ID_LENGTH, KeyText, Limits, is_tenant, sha256_of
from common.errors import SetupProblem
from common.settings import Settings

PUBLIC = "0.0.0.0"  # noqa: S104 - nothing listens


def test_a_key_can_be_read_again() -> None:
    key = KeyText.make()
    assert KeyText.parse(key.reveal()) == key
    assert len(key.id) == ID_LENGTH
    assert set(key.id) <= set(string.ascii_lowercase + string.digits)
    assert key.sha256 == sha256_of(key.reveal().removeprefix(f"steno_{key.id}_"))


def test_no_two_keys_are_alike() -> None:
    keys = [KeyText.make() for _ in range(200)]
    assert len({key.id for key in keys}) == len({key.secret for key in keys}) == 200


def test_printing_a_key_does_not_show_its_secret() -> None:
    key = KeyText.make()
    assert key.secret not in f"{key} {key!r} {[key]}"


@given(st.text() | st.from_regex(r"steno_[a-z0-9]{0,13}_[A-Za-z0-9_-]{0,44}", fullmatch=True))
def test_only_a_whole_key_is_read_as_one(text: str) -> None:
    key = KeyText.parse(text)
    assert key is None or key.reveal() == text


def test_limits_are_those_of_the_settings_where_the_key_has_none() -> None:
    settings = Limits(10, 100, 5, 3, 1.5)
    assert settings.but({}) == settings
    ours = settings.but({"requests_per_minute": 0, "audio_hours_per_day": 2, "since removed": 1})
    assert ours == Limits(10, 0, 5, 3, 2)


@pytest.mark.parametrize(
    ("names", "valid"),
    [
        (["acme", "a.b-c_D9", "x" * 64], True),
        (["", "a b", "x" * 65, "../a", "ă", "a\n"], False),
    ],
)
def test_names_of_tenants(names: list[str], *, valid: bool) -> None:
    assert {name: is_tenant(name) for name in names} == dict.fromkeys(names, valid)


@pytest.mark.parametrize(
    ("hosts", "loopback"),
    [
        (["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"], True),
        ([PUBLIC, "::", "10.0.0.1", "", "localhost.evil.example"], False),
    ],
)
def test_only_this_machine_reaches_loopback(hosts: list[str], *, loopback: bool) -> None:
    assert {host: is_loopback(host) for host in hosts} == dict.fromkeys(hosts, loopback)


def test_a_public_address_without_postgres_needs_a_key_in_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.net.reach.STARTUP_TIMEOUT_S", 0)
    settings = Settings()
    settings.api.host = PUBLIC
    settings.key.gateway_api_key = None
    warnings: list[str] = []
    with pytest.raises(SetupProblem, match="GATEWAY_API_KEY"):
        listening_host(settings, "postgresql://nobody:x@127.0.0.1:9/none", warnings.append)
    assert warnings == []
