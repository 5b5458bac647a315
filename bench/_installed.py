"""What of the peers there is on this machine, in which version, or why it is not there."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

PROGRAMS: Final = Path(__file__).resolve().parent / "peers"
INSTALLED: Final = PROGRAMS.parent / ".peers"
PYTHON: Final = INSTALLED / "venv" / "bin" / "python"
_SBIN: Final = "/usr/sbin:/usr/local/sbin"
_NCHAN: Final = (
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
    "/usr/share/nginx/modules/ngx_nchan_module.so",
)
# ---- what there is on this machine


def find_nginx() -> str | None:
    """Return the path of nginx, or None."""
    return os.environ.get("NGINX") or shutil.which("nginx") or shutil.which("nginx", path=_SBIN)


def find_nchan() -> str | None:
    """Return the path of its module nchan, or None."""
    named = os.environ.get("NCHAN_MODULE")
    return next((path for path in ([named] if named else _NCHAN) if Path(path).exists()), None)


def no_nchan() -> str:
    """Return why nchan cannot run, or nothing."""
    if find_nginx() is None:
        return "there is no nginx"
    return "" if find_nchan() else "nginx has no nchan (Debian: libnginx-mod-nchan)"


def no_package(name: str) -> Callable[[], str]:
    """Return what tells why a package of npm cannot run."""

    def missing() -> str:
        if shutil.which("node") is None:
            return "there is no node"
        installed = (PROGRAMS / "node_modules" / name / "package.json").exists()
        return "" if installed else "it is not installed (make peers)"

    return missing


def no_python() -> str:
    """Return why the Python peers cannot run, or nothing."""
    return "" if PYTHON.exists() else "it is not installed (make peers)"


def find_program(name: str) -> str | None:
    """Return a program that was compiled for the benchmarks, or is on the PATH."""
    built = INSTALLED / "bin" / name
    return str(built) if built.exists() else shutil.which(name)


def no_program(name: str) -> Callable[[], str]:
    """Return what tells why a compiled program cannot run."""
    return lambda: "" if find_program(name) else "it is not installed (make peers, with Go)"


def find_compiler() -> str | None:
    """Return the path of a C compiler, or None."""
    return shutil.which(os.environ.get("CC", "cc"))


# ---- which versions there are


def python_version() -> str:
    """Return the version of Python, which is the same for the peers."""
    return f"Python {platform.python_version()}"


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip()


def compiler_version() -> str:
    """Return the version of the C compiler."""
    return _said(find_compiler() or "cc", "--version").partition("\n")[0]


def nginx_version() -> str:
    """Return the versions of nginx and nchan."""
    # What nchan is of is known to the distribution only.
    nchan = ""
    if shutil.which("dpkg-query"):
        nchan = _said("dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan")
    nginx = _said(find_nginx() or "nginx", "-v").rpartition("/")[2]
    return f"{nchan or 'version unknown'} in nginx {nginx}"


def go_version(module: str) -> Callable[[], str]:
    """Return what tells the version of a Go module that is locked here."""

    def version() -> str:
        text = (PROGRAMS / module.rpartition("/")[2] / "go.mod").read_text()
        found = re.search(rf"\s{module}\S* (v\S+)", text)
        return found[1] if found else ""

    return version


def package_version(name: str) -> Callable[[], str]:
    """Return what tells the version of a package of npm."""

    def version() -> str:
        package = msgspec.json.decode(
            (PROGRAMS / "node_modules" / name / "package.json").read_bytes()
        )
        return f"{package['version']}, Node.js {_said('node', '--version')}"

    return version


def distribution_version(*names: str) -> Callable[[], str]:
    """Return what tells the versions of distributions of Python."""

    def version() -> str:
        folder = PYTHON.parent.parent / "lib"
        found = []
        for name in names:
            pattern = f"*/site-packages/{name.replace('-', '_')}-*.dist-info"
            found += [
                f"{name} {path.name.removesuffix('.dist-info').rpartition('-')[2]}"
                for path in folder.glob(pattern)
            ]
        return ", ".join([*found, python_version()])

    return version
