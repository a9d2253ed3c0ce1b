"""API keys: how one is written, what it allows, and how much."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

DEFAULT_TENANT = "default"
TENANT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

ID_LENGTH = 12
ID_PATTERN = rf"^[a-z0-9]{{{ID_LENGTH}}}$"
SECRET_BYTES = 32

_ALPHABET = string.ascii_lowercase + string.digits
_KEY = re.compile(rf"steno_([a-z0-9]{{{ID_LENGTH}}})_([A-Za-z0-9_-]{{43}})")


class Scope(StrEnum):
    """What a key is good for; `ADMIN` is good for everything, in every tenant."""

    TRANSCRIBE = "transcribe"
    READ = "read"
    ADMIN = "admin"


def is_tenant(name: str) -> bool:
    """Whether a tenant may be called so."""
    return re.fullmatch(TENANT_PATTERN, name) is not None


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key as its owner has it: a public ``id``, and a secret of 256 random bits."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> Self:
        """A new one."""
        name = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))
        return cls(name, secrets.token_urlsafe(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The key that ``text`` is; None where it is none of ours."""
        found = _KEY.fullmatch(text)
        return cls(*found.groups()) if found else None

    def reveal(self) -> str:
        """All of it. To be shown once, and written nowhere."""
        return f"steno_{self.id}_{self.secret}"

    @property
    def sha256(self) -> str:
        """Of the secret, in lower-case hex; a slow hash would add nothing to 256 random bits."""
        return sha256_of(self.secret)


def sha256_of(text: str) -> str:
    """In lower-case hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two hashes are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(one, other)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked for with a key; 0: as much as one likes."""

    requests_per_second: int = 0
    requests_per_minute: int = 0
    concurrent_jobs: int = 0
    concurrent_streams: int = 0
    audio_hours_per_day: float = 0

    def but(self, overrides: Mapping[str, float]) -> Limits:
        """These, where ``overrides`` (by the names of the fields) say nothing else."""
        if not overrides:
            return self
        known: dict[str, Any] = {name: overrides[name] for name in LIMIT_NAMES if name in overrides}
        return replace(self, **known)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


NO_LIMITS = Limits()
LIMIT_NAMES = tuple(each.name for each in fields(Limits))
