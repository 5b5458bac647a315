"""Imports run one way, and what reaches outside does so in one room only."""

import ast
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each layer may import itself and those before it. `server.app` and `server.cli` compose the
# whole and are the last layer, though they live in `server`.
LAYERS = ("config", "pubsub", "server", "handlers", "composition")
COMPOSITION = ("server.app", "server.cli")
ROOMS = ("config", "pubsub", "server", "handlers", "static")

# Who alone may import these packages from outside.
ONLY_IN = {
    "tornado": ("handlers", "composition"),
    "redis": ("pubsub",),
    "hiredis": ("pubsub",),
    "motor": ("pubsub",),
    "pymongo": ("pubsub",),
    "sqlite3": ("pubsub",),
    "dotenv": ("config",),
}

# `server.cli` hands the environment to `config`; it does not look into it.
ENVIRONMENT_LAYER = "config"
ENVIRONMENT_GIVER = "server.cli"
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}

BANNED_NAMES = {"common", "helper", "helpers", "manager", "managers", "util", "utils"}


def layer_of(module: str) -> str | None:
    """The layer of a dotted module name, or None for what is not ours."""
    if any(module == name or module.startswith(f"{name}.") for name in COMPOSITION):
        return "composition"
    room = module.partition(".")[0]
    return room if room in ROOMS else None


def imported(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Yield the absolute names that one node imports, by statement or by `import_module`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = module.split(".")
            parents = parents[: len(parents) - node.level + is_package]
            base = ".".join([*parents, base] if base else parents)
        # `from server import app` imports server.app, so every name may be a module.
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def import_violations(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    layer = layer_of(module)
    for name in imported(node, module, is_package):
        target = layer_of(name)
        outside = name.partition(".")[0]
        if outside in ONLY_IN and layer not in ONLY_IN[outside]:
            yield f"{module} imports {outside}"
        if outside in ("tests", "bench"):
            yield f"{module} imports {outside}"
        if target == "static" and layer != "composition":
            continue  # Anyone who serves files may ask where they are; it imports nothing itself.
        if layer == "static" and target not in (None, "static"):
            yield f"{module} imports {name}"
        if layer in LAYERS and target in LAYERS and LAYERS.index(target) > LAYERS.index(layer):
            yield f"{module} imports {name}"


def environment_violations(tree: ast.Module, module: str) -> Iterator[str]:
    if layer_of(module) == ENVIRONMENT_LAYER:
        return
    given = set()
    if module == ENVIRONMENT_GIVER:
        # Only as an argument, as it stands: load(..., os.environ).
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                given |= {id(arg) for arg in node.args}
                given |= {id(keyword.value) for keyword in node.keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("os", "posix") and node.attr in ENVIRONMENT:
                if not (node.attr == "environ" and id(node) in given):
                    yield f"{module} reads the environment: os.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "posix"):
            for alias in node.names:
                if alias.name in ENVIRONMENT or alias.name == "*":
                    yield f"{module} reads the environment: from os import {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in ("os", "posix") and alias.asname:
                    yield f"{module} hides {alias.name} behind another name"


def name_violations(module: str) -> Iterator[str]:
    room, _, rest = module.partition(".")
    parts = [part for part in rest.split(".") if part]
    for part in parts:
        if any(word in BANNED_NAMES for word in part.split("_")):
            yield f"{module} has a name that says nothing"
    if parts and parts[0] in sys.stdlib_module_names:
        yield f"{module} shadows the standard library"
    if room in sys.stdlib_module_names:
        yield f"{room} shadows the standard library"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """All that is wrong with one module, in order of appearance and without repetition."""
    tree = ast.parse(source)
    found = [*name_violations(module), *environment_violations(tree, module)]
    for node in ast.walk(tree):
        # One complaint for each statement: `from a.b import c` may name both a.b and a.b.c.
        found += islice(import_violations(node, module, is_package), 1)
    return list(dict.fromkeys(found))


def sources() -> Iterator[tuple[Path, str, bool]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield path, ".".join(parts[:-1] if is_package else parts), is_package


def test_every_module_keeps_to_its_room() -> None:
    found = []
    for path, module, is_package in sources():
        found += violations(path.read_text(encoding="utf-8"), module, is_package)
    assert found == []


def test_every_room_is_seen() -> None:
    seen = {module.partition(".")[0] for _, module, _ in sources()}
    assert seen == set(ROOMS)


PLANTED = [
    ("config.settings", "import pubsub.broker"),
    ("config.settings", "from server import errors"),
    ("pubsub.broker", "from server.hub import Hub"),
    ("pubsub.broker", "import handlers"),
    ("server.hub", "from handlers import frames"),
    ("server.hub", "import server.app"),
    ("server.hub", "from server import cli"),
    ("server.hub", "from . import app"),
    ("server.sub.hub", "from ..app import make"),
    ("handlers.rest", "from server.app import make"),
    ("static", "import config"),
    ("server.hub", "def f():\n    import handlers.rest"),
    ("server.hub", "class C:\n    async def f(self):\n        from handlers import rest"),
    (
        "server.hub",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from handlers import rest",
    ),
    ("server.hub", "try:\n    import handlers\nexcept ImportError:\n    pass"),
    ("server.hub", "import importlib\nimportlib.import_module('handlers.rest')"),
    ("server.hub", "__import__('tornado.web')"),
    ("server.hub", "import tornado"),
    ("server.hub", "from tornado.ioloop import IOLoop"),
    ("server.application", "import tornado.web"),
    ("config.settings", "import tornado.options"),
    ("pubsub.broker", "from tornado import gen"),
    ("server.hub", "import redis.asyncio"),
    ("handlers.rest", "import sqlite3"),
    ("server.app", "from motor import motor_asyncio"),
    ("config.settings", "from pymongo import AsyncMongoClient"),
    ("server.hub", "from tests.support import clock"),
    ("server.hub", "import bench.load"),
    ("server.hub", "import os\nhome = os.environ['HOME']"),
    ("server.app", "import os\nload(os.environ)"),
    ("pubsub.broker", "import os\nhome = os.getenv('HOME')"),
    ("handlers.rest", "from os import environ"),
    ("handlers.rest", "from os import getenv as g"),
    ("handlers.rest", "import os as o\no.environ['HOME']"),
    ("server.cli", "import os\nhome = os.environ['HOME']"),
    ("server.cli", "import os\nhome = os.environ.get('HOME')"),
    ("server.cli", "import os\nos.getenv('HOME')"),
    ("server.utils", ""),
    ("server.session_manager", ""),
    ("handlers.helpers", ""),
    ("pubsub.common.keys", ""),
    ("server.logging", ""),
    ("pubsub.queue", ""),
    ("config.types", ""),
]


@pytest.mark.parametrize(("module", "source"), PLANTED)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module, is_package=module == "static")) == 1


ALLOWED = [
    ("config.settings", "import os\nhome = os.environ.get('HOME')\nfrom config import rules"),
    ("pubsub.broker", "import config.rules\nfrom pubsub.event import Event\nimport redis"),
    ("pubsub.sqlite_archive", "import sqlite3"),
    ("server.hub", "from config.rules import Rule\nimport pubsub\nimport os\nos.getpid()"),
    ("server.hub", "from server import app_state, client"),
    ("handlers.rest", "import tornado.web\nfrom server.hub import Hub\nimport static"),
    ("server.app", "import tornado.ioloop\nimport handlers.rest\nimport static"),
    ("server.cli", "import os\nimport server.app\nload(os.environ)\nload(environment=os.environ)"),
    ("server.log", "import logging\nimport queue\nimport types"),
    ("server.hub", "import tornadic\nimport handlers_of_others"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_relative_import_is_resolved() -> None:
    package = "from .app import make"
    assert violations(package, "server", is_package=True) == ["server imports server.app"]
    assert violations("from ..handlers import x", "server.hub") == ["server.hub imports handlers"]
