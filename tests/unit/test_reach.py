"""What the words of Postgres mean: to wait for it, or not to."""

from __future__ import annotations

import pytest

from common.db.database import parsed
from common.errors import SetupProblem
from common.net.reach import postgres_rejects

SERVER = 'connection to server at "password-db" (10.0.0.2), port 5432 failed: '


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "steno"',
        'FATAL:  database "steno" does not exist',
        'FATAL:  role "steno" is not permitted to log in',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.3", user "steno"',
        "fe_sendauth: no password supplied",
    ],
)
def test_a_refusal_that_lasts_is_not_waited_for(said: str) -> None:
    assert postgres_rejects(Exception(SERVER + said))


@pytest.mark.parametrize(
    "said",
    [
        "Connection refused",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is not yet accepting connections",
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "FATAL:  terminating connection due to administrator command",
        "FATAL:  server login has been failing, try again later (server_login_retry)",  # PgBouncer
        "FATAL:  das Datenbanksystem startet",
    ],
)
def test_one_that_may_pass_is(said: str) -> None:
    assert not postgres_rejects(Exception(SERVER + said))


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
    with pytest.raises(SetupProblem, match="DATABASE_URL") as refused:
        parsed(url)
    assert "sesame" not in str(refused.value)
