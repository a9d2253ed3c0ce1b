"""Parameters of URLs that a route does not have are rejected, not ignored."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel

from api.http.fields import unsupported


async def _check(request: Request) -> None:
    known = list(_names(request.scope["route"].dependant))
    for name in request.query_params:
        if name not in known:
            raise unsupported(name, known)


def _names(dependant: Dependant) -> Iterator[str]:
    """The parameters of a route and of all that it depends on."""
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields
        else:
            yield field.alias
    for each in dependant.dependencies:
        yield from _names(each)


ONLY_KNOWN = [Depends(_check)]
"""The ``dependencies`` of a router whose routes take no other parameters than their own.

Raises:
    Unsupported: the URL has another one; the error suggests the nearest of the route's.
"""
