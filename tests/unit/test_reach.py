"""Which errors of Postgres are worth waiting for."""

from __future__ import annotations

import pytest

from common.db.database import parsed
from common.errors import SetupProblem
from common.net.reach import postgres_rejects

SERVER = 'connection to server at "password-db" (10.0.0.2), port 5432 failed: '


@pytest.mark.parametrize(
    ("message", "final"),
    [
        ('FATAL:  password authentication failed for user "steno"', True),
        ('FATAL:  database "steno" does not exist', True),
        ('FATAL:  role "steno" is not permitted to log in', True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.3", user "steno"', True),
        ("fe_sendauth: no password supplied", True),
        ("Connection caught", False),
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  the database system is not yet accepting connections", False),
        ("FATAL:  sorry, too many clients already", False),
        ("FATAL:  remaining connection slots are reserved for the SUPERUSER attribute", False),
        ("FATAL:  terminating connection due to administrator command", False),
        # PgBouncer's
        ("FATAL:  server login has been failing, try again later (server_login_retry)", False),
        ("FATAL:  das Datenbanksystem startet", False),
    ],
)
def test_only_a_rejection_that_lasts_is_final(message: str, *, final: bool) -> None:
    assert postgres_rejects(Exception(SERVER + message)) == final


@pytest.mark.parametrize("name", ["postgresql", "postgresql+psycopg", "postgres"])
def test_all_names_of_the_driver_are_known(name: str) -> None:
    assert parsed(f"{name}://steno@postgres/steno").drivername == "postgresql"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://steno:sesame@postgres/steno",
        "mysql://steno:sesame@postgres/steno",
        "postgresql://steno:open@sesame@postgres/steno",
        "sesame",
    ],
)
def test_another_url_is_rejected_and_not_repeated(url: str) -> None:
    with pytest.raises(SetupProblem, match="DATABASE_URL") as caught:
        parsed(url)
    assert "sesame" not in str(caught.value)
