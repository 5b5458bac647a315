"""How do bytes go out? This file: the description of the REST interface (OpenAPI 3.1; pure).

All of it comes from the table of routes and from the types that decode and encode the bodies.
"""

from collections.abc import Iterable, Sequence
from http.client import responses
from typing import Any, Final

import msgspec

from handlers.models import ErrorResult
from handlers.operations import Answer, Body, Operation, Route
from handlers.problem import PROBLEM_TYPE, Problem
from server.errors import Refused

_SCHEMAS: Final = "#/components/schemas/{name}"
_INTRODUCTION: Final = (
    "Publish events over HTTP, and see and steer who receives them. Receiving is a live session: "
    "WebSocket at `/v1/ws`, Server-Sent Events at `/v1/sse`. Everything refused is answered by a "
    "problem document (RFC 9457) whose `code` is one of the protocol's words and whose `retry` "
    "says whether the same request may succeed later."
)
_HEADERS: Final[dict[str, tuple[str, str]]] = {
    "X-Request-Id": ("The request's own id, or a new one; it stands in the log.", "string"),
    "RateLimit-Limit": ("Requests that this API key, user or address may make at once.", "integer"),
    "RateLimit-Remaining": ("Requests that are left of these just now.", "integer"),
    "RateLimit-Reset": ("Seconds until all of them are there again.", "integer"),
    "Retry-After": ("Seconds to wait before the next attempt.", "integer"),
}


def document(routes: Iterable[Route], version: str) -> bytes:
    """Return the description as JSON."""
    routes = tuple(routes)
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS)
    by_type = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.operations:
            paths[route.path] = {
                each.method.lower(): _operation(each, by_type) for each in route.operations
            }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Galecast",
                "version": version,
                "description": _INTRODUCTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": components,
                "headers": {
                    name: {"description": text, "schema": {"type": kind}}
                    for name, (text, kind) in _HEADERS.items()
                },
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key (`id.secret`) of a service, or a user's JWT.",
                    }
                },
            },
        }
    )


def _types(routes: Sequence[Route]) -> list[Any]:
    """Return every type that stands in a body, once."""
    bodies: list[Body] = []
    for route in routes:
        for operation in route.operations:
            bodies += operation.bodies
            for answer in operation.answers:
                bodies += answer.bodies
    found = {id(body.type): body.type for body in bodies if not isinstance(body.type, dict)}
    # Named only by those that refer to it.
    return [*found.values(), ErrorResult, Problem]


def _operation(operation: Operation, schemas: dict[int, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
    }
    if operation.description:
        described["description"] = operation.description
    if operation.access != "open":
        described["security"] = [{"bearer": []}]
        if operation.access == "optional":
            described["security"].append({})
    if operation.parameters:
        described["parameters"] = [
            {
                "name": each.name,
                "in": each.where,
                "description": each.description,
                "required": each.required,
                "schema": each.schema,
            }
            for each in operation.parameters
        ]
    if operation.bodies:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": _content(operation.bodies, schemas),
        }
    described["responses"] = {
        **{str(each.status): _answer(operation, each, schemas) for each in operation.answers},
        **_problems(operation, schemas),
    }
    return described


def _answer(operation: Operation, answer: Answer, schemas: dict[int, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": answer.description,
        "headers": _headers("X-Request-Id"),
    }
    if operation.access != "open":
        names = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
        described["headers"] |= _headers(*names)
    if answer.bodies:
        described["content"] = _content(answer.bodies, schemas)
    return described


def _problems(operation: Operation, schemas: dict[int, Any]) -> dict[str, Any]:
    by_status: dict[int, list[type[Refused]]] = {}
    for error in sorted(operation.errors, key=lambda error: error.status):
        by_status.setdefault(error.status, []).append(error)
    described: dict[str, Any] = {}
    for status, errors in by_status.items():
        names = ["X-Request-Id"] + (["Retry-After"] if status in (429, 503) else [])
        codes = ", ".join(f"`{error.code}`" for error in errors)
        described[str(status)] = {
            "description": f"{responses[status]}: {codes}",
            "headers": _headers(*names),
            "content": {PROBLEM_TYPE: {"schema": schemas[id(Problem)]}},
        }
    return described


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _content(bodies: Sequence[Body], schemas: dict[int, Any]) -> dict[str, Any]:
    """Return bodies by media type; several of one type are alternatives."""
    by_media: dict[str, list[Any]] = {}
    for body in bodies:
        schema = body.type if isinstance(body.type, dict) else schemas[id(body.type)]
        by_media.setdefault(body.media_type, []).append(schema)
    return {
        media: {"schema": found[0] if len(found) == 1 else {"anyOf": found}}
        for media, found in by_media.items()
    }
