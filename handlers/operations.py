"""How do bytes come in and go out? This file: how an operation over HTTP is described."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from handlers.base import BaseHandler
from handlers.media import JSON
from server.errors import (
    BadRequest,
    Forbidden,
    Internal,
    RateLimited,
    Refused,
    TokenExpired,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

Access = Literal["open", "bearer", "optional"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter outside of the body; `schema` is JSON Schema."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: dict[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """One kind of body that a request may have, or an answer has; `type` is a model or a schema."""

    media_type: str
    type: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer other than a problem, and the kinds of body that it may have."""

    status: int
    description: str
    bodies: tuple[Body, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a route. `errors` are those that it may answer, all of them."""

    method: str
    name: str
    summary: str
    answers: tuple[Answer, ...]
    description: str = ""
    access: Access = "bearer"
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[Body, ...] = ()
    body_required: bool = True
    errors: tuple[type[Refused], ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """An address, who serves it, and what it does; without operations it is not described.

    `path` has a name in braces in place of each part that varies.
    """

    path: str
    handler: type[BaseHandler]
    operations: tuple[Operation, ...] = ()


ANYBODY: Final = (BadRequest, Forbidden, Internal)
"""Errors of every operation: a foreign page is Forbidden."""

KNOWN: Final = (*ANYBODY, Unauthorized, TokenExpired, RateLimited, Unavailable)
"""Errors of every operation that wants to know who asks."""

WITH_BODY: Final = (*KNOWN, TooLarge, UnsupportedMediaType)
"""Errors of every operation that reads a body."""


def ok(description: str, model: Any, status: int = 200) -> Answer:
    """Return the description of an answer in JSON."""
    return Answer(status, description, (Body(JSON, model),))


def query(name: str, description: str, schema: dict[str, Any], required: bool = False) -> Parameter:
    """Return the description of a parameter of the query."""
    return Parameter(name, "query", description, schema, required)


def path(name: str, description: str, schema: dict[str, Any]) -> Parameter:
    """Return the description of a part of the address."""
    return Parameter(name, "path", description, schema, True)
