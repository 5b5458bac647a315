"""What the documents say is so: commands run, links lead on (tables: test_docs_tables.py).

Fenced blocks of `sh`, `console` and `session` are run against a server in development mode, in
order, each document with a server of its own. In `console` blocks the output is compared too;
`...` stands for what differs from run to run. Programs are files that the commands after them run;
those of Node.js and of pages have tests of their own (test_docs_clients.py).
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from config.settings import Settings
from config.sources import load
from doc_shell import SERVE, Json, Msgpack, reader
from doc_text import (
    DOCUMENTS,
    GENERATED,
    ROOT,
    Block,
    anchors,
    blocks,
    is_of_node,
    links,
    prose,
    read,
)
from server.cli_flags import parse

RUN = ("sh", "console", "session", "toml", "python")
# Not commands: drawings, and files that have tests of their own, below or in test_docs_clients.py.
SHOWN = ("text", "ini", "js", "json", "mjs", "html")
# Commands that are not run here, and what looks after them.
ELSEWHERE = {
    SERVE: "every document has this server, on a free port",
    "galecast serve --dev --readings ": "test_cli_readings.py starts a node so",
    "make ": "make -n, below: the targets run the tests themselves",
    "python3 -m venv /opt/galecast": "test_packaging.py builds the wheel and installs it",
    "/opt/galecast/bin/pip install ": "test_packaging.py builds the wheel and installs it",
    "galecast serve --config ": "test_app_process.py starts and reloads a node so",
    "galecast publish --key-file ": "test_cli.py, with a key of its own",
    "GALECAST_ORIGINS=": "test_docs_clients.py has this server, with the origin of its pages",
    "python3 -m http.server ": "test_docs_clients.py has this server, on a free port",
    "docker ": "test_project.py reads the Dockerfile; tests have no Docker",
    "groupadd ": "changes the machine",
    "chown ": "changes the machine",
    "chmod -R ": "changes the machine",
    "systemctl ": "changes the machine",
}


def written() -> list[Block]:
    return [block for name in DOCUMENTS if name != GENERATED for block in blocks(name)]


def lines_of(block: Block) -> list[str]:
    """The lines of a block of sh, with those that go on put together."""
    return block.text.replace("\\\n", " ").splitlines()


def is_elsewhere(block: Block) -> bool:
    """Whether a block is not run here. Then none of its lines is; it has to be one or the other."""
    if is_of_node(block):
        return True
    if block.language != "sh":
        return False
    found = {line.startswith(tuple(ELSEWHERE)) for line in lines_of(block)}
    assert len(found) == 1, f"{block.place}: some lines can be run here, others cannot"
    return found == {True}


# ---- commands


def test_every_block_is_run_or_known() -> None:
    languages = {block.language for block in written()}
    assert languages <= {*RUN, *SHOWN}, "a block of another language is neither run nor known"
    used = {
        start
        for block in written()
        if block.language == "sh" and is_elsewhere(block)
        for line in lines_of(block)
        for start in ELSEWHERE
        if line.startswith(start)
    }
    assert used == set(ELSEWHERE), "a command that no document has any more"


@pytest.mark.parametrize(
    "document",
    [
        name
        for name in DOCUMENTS
        if name != GENERATED
        and any(block.language in RUN and not is_elsewhere(block) for block in blocks(name))
    ],
)
def test_every_command_runs(document: str, tmp_path: Path) -> None:
    with reader(tmp_path) as shell:
        for block in blocks(document):
            if block.language in RUN and not is_elsewhere(block):
                shell.run_block(block)
        shell.finish()


def test_the_session_is_the_same_in_messagepack(tmp_path: Path) -> None:
    with reader(tmp_path) as shell:
        # The event that a service publishes in between belongs to the session.
        found = blocks("docs/protocol.md")
        places = [i for i, block in enumerate(found) if block.language == "session"]
        for block in found[places[0] : places[-1] + 1]:
            shell.run_block(block, Msgpack())


def test_a_false_session_is_noticed(tmp_path: Path) -> None:
    """The comparison compares: what the server would not say in that place fails."""
    text = '-> {"type":"ping","ref":1}\n<- {"type":"pong","ref":1}'
    with reader(tmp_path) as shell, pytest.raises(AssertionError, match="unauthorized"):
        shell.replay(Block("x", 1, "session", text), Json())


def test_make_knows_the_targets() -> None:
    commands = {
        line
        for block in written()
        if block.language == "sh"
        for line in lines_of(block)
        if line.startswith("make ")
    } | set(re.findall(r"`(make [a-z]+)`", "".join(prose(name) for name in DOCUMENTS)))
    assert commands
    for command in commands:
        done = subprocess.run(
            ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_scripts_that_are_named_exist() -> None:
    for name in DOCUMENTS:
        for script in re.findall(r"`python (\S+\.py)", read(name)):
            assert (ROOT / script).is_file(), f"{name}: {script}"


def test_modules_and_folders_that_are_named_exist() -> None:
    """What is made on the spot need not: a fresh tree without `bench/.peers` failed this test."""
    rooms = "config|pubsub|server|handlers|static|tests|docs|bench"
    made = {line.rstrip("/") for line in read(".gitignore").split()}
    for name in DOCUMENTS:
        for path in re.findall(rf"(?<![\w/.])((?:{rooms})/[\w/-]*(?:\.\w+)?)", read(name)):
            is_made = path.rstrip("/") in made or not made.isdisjoint(path.split("/"))
            assert is_made or (ROOT / path).exists(), f"{name}: {path}"


def test_every_way_to_serve_is_understood() -> None:
    """Units, images and help name flags; each of them is one."""
    found = set()
    for block in written():
        text = block.text.replace("\\\n", " ")
        found |= {line.split("#")[0].strip() for line in re.findall(r"galecast (serve\b.*)", text)}
    assert len(found) >= 3
    for command in found:
        assert parse(shlex.split(command)).command == "serve"


@pytest.mark.parametrize("block", [b for b in written() if b.language == "toml"], ids=str)
def test_every_settings_file_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "token.secret").write_text("s" * 32)
    path = tmp_path / "galecast.toml"
    path.write_text(block.text.replace('token.secret"', f'{tmp_path}/token.secret"'))
    assert load({}, {}, path).settings != Settings()


# ---- links


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for link in links(document):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.is_file(), f"{document}: {link}"
        if anchor:
            name = str(target.resolve().relative_to(ROOT.resolve()))
            assert anchor in anchors(name), f"{document}: {link}"


def test_every_document_can_be_found_from_the_readme() -> None:
    assert {link for link in links("README.md") if link.endswith(".md")} >= {
        name for name in DOCUMENTS if name != "README.md"
    }


def test_the_words_of_the_project_only() -> None:
    """A reader meets the product, not its making."""
    for name in DOCUMENTS:
        found = re.search(r"\b(TODO|FIXME|TBD|localhost:\d+|/(?:root|home|work)/)", read(name))
        assert found is None, f"{name}: {found}"
