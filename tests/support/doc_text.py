"""What a Markdown document holds: blocks, tables, headings, links (pure)."""

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent.parent
GENERATED: Final = "docs/configuration.md"
DOCUMENTS: Final = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)

_FENCE: Final = re.compile(r"```(\w*)$")
_HEADING: Final = re.compile(r"#{1,6} (.+)$")
_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_DEFINITION: Final = re.compile(r'\[([^\]]+)\]: (\S+)(?: "(.+)")?$', re.MULTILINE)
_NAMED: Final = re.compile(r"(?:#|//|<!--) ([\w-]+\.(?:py|mjs|js|html))(?: -->)?\n")
_PRINTS: Final = re.compile(r"(?:#|//) prints: (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block; `line` is that of its fence."""

    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


class Command(NamedTuple):
    """A command of a console block, and what it is said to write."""

    text: str
    output: str


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str) -> list[Block]:
    """The fenced blocks in order."""
    found: list[Block] = []
    language, start, lines = "", 0, list[str]()
    for number, line in enumerate(read(document).splitlines(), 1):
        if start and line == "```":
            found.append(Block(document, start, language, "\n".join(lines)))
            start = 0
        elif start:
            lines.append(line)
        elif fence := _FENCE.match(line):
            language, start, lines = fence[1], number, []
        else:
            assert "```" not in line, f"{document}:{number}: a fence in another form"
    assert not start, f"{document}:{start}: the block has no end"
    return found


def prose(document: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(document), flags=re.MULTILINE | re.DOTALL)


def console(block: Block) -> list[Command]:
    """The commands of a console block: `$ ` begins one, `> ` goes on with it."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"{block.place}: output before any command"
            found[-1][1].append(line)
    return [Command("\n".join(command), "\n".join(output)) for command, output in found]


def pattern(output: str) -> re.Pattern[str]:
    """What output has to look like: `...` stands for anything in a line, alone for any lines."""
    lines = []
    for line in output.splitlines():
        if line == "...":
            lines.append(r"(?s:.*?)")
        else:
            lines.append(r"[^\n]*?".join(map(re.escape, line.split("..."))))
    return re.compile(r"\n".join(lines))


def file_name(block: Block) -> str | None:
    """The file that a block is, if its first line is a comment with a name."""
    found = _NAMED.match(block.text)
    return found[1] if found else None


def prints(block: Block) -> list[str]:
    """What a program is said to print: `prints:` in its comments, in the order of the lines."""
    return _PRINTS.findall(block.text)


def is_of_node(block: Block) -> bool:
    """Whether a block is a program of Node.js, or runs one."""
    return block.language == "mjs" or block.text.startswith("$ node ")


def headings(document: str) -> list[str]:
    return [found[1] for line in prose(document).splitlines() if (found := _HEADING.match(line))]


def anchors(document: str) -> set[str]:
    """The anchors that the headings get, with a number where one comes again."""
    found: dict[str, int] = {}
    for heading in headings(document):
        text = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[text] = found.get(text, -1) + 1
    return {f"{text}-{n}" if n else text for text, most in found.items() for n in range(most + 1)}


def links(document: str) -> list[str]:
    return _LINK.findall(prose(document)) + [each.path for each in references(document).values()]


class Reference(NamedTuple):
    """Where a link leads that is written `[text][label]`; `title` is empty if it has none."""

    path: str
    title: str


def references(document: str) -> dict[str, Reference]:
    """What a document defines for links to name, by label."""
    found = _DEFINITION.findall(prose(document))
    assert len({label for label, _path, _title in found}) == len(found), document
    return {label: Reference(path, title) for label, path, title in found}


def tables(document: str) -> dict[str, list[list[str]]]:
    """The rows of all tables below each heading, heads and rulers left out.

    A heading that comes more than once stands for the last one that has a table.
    """
    found: dict[str, list[list[str]]] = {}
    heading, rows = "", list[list[str]]()
    for line in prose(document).splitlines():
        if match := _HEADING.match(line):
            heading, rows = match[1].replace("`", ""), []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set(cells[0]) <= set("- ") and "---" in line:
                rows.clear() if heading not in found else rows.pop()
                found[heading] = rows
            else:
                rows.append(cells)
    return found
