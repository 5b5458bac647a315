"""The description says what is true: of every route, method, answer and error."""

import json
from typing import Any

import pytest

from handlers.openapi import document
from handlers.table import TABLE
from nodes import serving
from server.errors import ALL

DOCUMENT: Any = json.loads(document(TABLE, "1.2.3"))


def operations() -> list[tuple[str, str, Any]]:
    return [
        (path, method, each)
        for path, methods in DOCUMENT["paths"].items()
        for method, each in methods.items()
    ]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*(references(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(references(each) for each in value))
    return set()


async def test_it_is_served() -> None:
    async with serving() as served:
        answer = await served.ask("GET", "/openapi.json", bearer=None)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json["openapi"] == "3.1.0"
        assert answer.json["paths"].keys() == DOCUMENT["paths"].keys()


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


def test_every_method_of_a_described_route_is_described() -> None:
    for route in TABLE:
        if route.operations:
            described = {each.method for each in route.operations}
            assert described == set(route.handler.methods()) - {"HEAD", "OPTIONS"}


def test_names_are_unique() -> None:
    names = [each["operationId"] for _, _, each in operations()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("path", "method", "described"), operations())
def test_an_operation(path: str, method: str, described: Any) -> None:
    named = {each["name"] for each in described.get("parameters", []) if each["in"] == "path"}
    assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
    codes = {error.code: error.status for error in ALL}
    problems = 0
    for status, answer in described["responses"].items():
        assert answer["description"]
        if "application/problem+json" in answer.get("content", {}):
            problems += 1
            said = answer["description"].partition(": ")[2].replace("`", "").split(", ")
            assert {codes[code] for code in said} == {int(status)}
            assert len(said) == len(set(said))
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))
    assert {"400", "403", "500"} <= described["responses"].keys()
    if described.get("security") == [{"bearer": []}]:
        assert {"401", "429"} <= described["responses"].keys()
    if "requestBody" in described:
        assert {"413", "415"} <= described["responses"].keys()
    assert problems


def test_publishing_is_described_in_all_its_forms() -> None:
    content = DOCUMENT["paths"]["/v1/events"]["post"]["requestBody"]["content"]
    assert set(content) == {
        "application/json",
        "application/x-ndjson",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
    }
    one, many = content["application/json"]["schema"]["anyOf"]
    assert one == {"$ref": "#/components/schemas/PublishRequest"}
    assert many == {"type": "array", "items": one}


def test_models_are_the_ones_that_decode() -> None:
    model = DOCUMENT["components"]["schemas"]["PublishRequest"]
    assert model["required"] == ["channel", "data"]
    optional = {"name", "tags", "id", "exclude", "deliver_at"}
    assert set(model["properties"]) == {"channel", "data"} | optional
    assert DOCUMENT["components"]["schemas"]["Problem"]["required"] == [
        "title",
        "status",
        "detail",
        "instance",
        "code",
        "retry",
    ]
