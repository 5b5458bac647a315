"""The library as a package: version, types, size."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STATIC = ROOT / "static"

Run = Callable[..., tuple[int, str]]


def test_the_package_is_of_the_same_version_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package = json.loads((STATIC / "package.json").read_text())
    assert (package["name"], package["version"]) == (project["name"], project["version"])
    assert package["license"] == project["license"]
    assert all((STATIC / name).is_file() for name in package["files"])


def test_what_the_tests_need_is_pinned() -> None:
    package = json.loads((HERE / "package.json").read_text())
    lock = json.loads((HERE / "package-lock.json").read_text())
    assert package["private"] is True
    assert "dependencies" not in package
    wanted = package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    packages = {path: each for path, each in lock["packages"].items() if path}
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    for each in packages.values():
        assert each["integrity"].startswith("sha512-")
        assert each.get("resolved", "https://registry.npmjs.org/").startswith(
            "https://registry.npmjs.org/"
        )


def test_it_depends_on_nothing() -> None:
    assert not re.search(r"^\s*import\b|\bimport\(", (STATIC / "galecast.js").read_text(), re.M)
    package = json.loads((STATIC / "package.json").read_text())
    assert not [key for key in package if "ependencies" in key]


def test_it_is_small(run: Run) -> None:
    code, output = run("node", "size.mjs")
    print(output)
    assert code == 0, output


def test_its_types_are_sound(run: Run) -> None:
    assert run("tsc", "-p", "tsconfig.json") == (0, "")


def test_its_declarations_are_up_to_date(run: Run, tmp_path: Path) -> None:
    code, output = run("node", "types.mjs", str(tmp_path))
    assert code == 0, output
    (made,) = tmp_path.iterdir()
    message = "static/galecast.d.ts is not what `make types` makes"
    assert made.name == "galecast.d.ts"
    assert made.read_text() == (STATIC / made.name).read_text(), message


def test_its_declarations_say_what_it_can_do(run: Run) -> None:
    """types.test-d.ts uses all of it, rightly, and wrongly where that must not pass."""
    assert run("tsc", "-p", "tsconfig.use.json") == (0, "")


def test_its_declarations_show_nothing_internal() -> None:
    """Nor what only the library's own text names: that would be there for applications to use."""
    declared = (STATIC / "galecast.d.ts").read_text()
    assert not re.search(r"^\s+_\w+[(:?]", declared, re.MULTILINE)
    names = re.findall(r"^(?:export )?(?:declare )?(?:type|class|function) (\w+)", declared, re.M)
    assert sorted(names) == sorted(_EXPORTED)


_EXPORTED = {
    *("Connection", "GalecastError", "Subscription", "connect"),
    *("ConnectOptions", "Encoding", "PublishOptions", "SubscribeOptions"),
    *("ConnectionState", "TokenReason", "Transport"),
    *("EventMessage", "EventPage", "Member", "MemberPage", "Published"),
    *("ConnectionEvents", "StateEvent", "SubscriptionEvent"),
    *("SubscriptionEvents", "EndedEvent", "MembersEvent", "ResetEvent", "SubscribedEvent"),
    *("EventHandler", "Typed"),
}
