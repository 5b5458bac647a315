"""A real Nginx for tests, with the configuration of deploy/: only names, ports and paths differ."""

import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ports import steady_ports
from spawning import spawned

ROOT = Path(__file__).resolve().parent.parent.parent
NGINX = ROOT / "deploy" / "nginx"
NODES = ("172.30.0.21:8000", "172.30.0.22:8000", "172.30.0.23:8000")
OPTION = "# include publishers.conf;"
_START_S = 15.0


def find_nginx() -> str:
    """Return the path of nginx; the test is skipped where there is none."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")
    if found is None:
        pytest.skip("there is no nginx")
    return found


class Issuer:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.pem"
        own = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._write(self.certificate, own)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )

    def _write(self, path: Path, builder: x509.CertificateBuilder) -> None:
        signed = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return a certificate for `name` and 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        certificate, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        self._write(
            certificate,
            self._builder(subject, key).add_extension(
                x509.SubjectAlternativeName(names), critical=False
            ),
        )
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, key_file


class NginxServer:
    """Nginx in front of three ports of this machine; runs while the block runs.

    `publishers` puts the option for client certificates in force; `issuer` issues what it trusts,
    `strangers` what it does not.
    """

    def __init__(self, nodes: Sequence[int], *, publishers: bool = False) -> None:
        self._program = find_nginx()
        self.folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        # Where it is started by root, its workers are another user.
        self.folder.chmod(0o755)
        self.port, self.plain_port, self.status_port = steady_ports(3)
        tls = self.folder / "tls"
        tls.mkdir()
        (self.folder / "cache").mkdir()
        self.issuer = Issuer(tls, "publishers-ca")
        self.strangers = Issuer(tls, "strangers-ca")
        self._server_ca = Issuer(tls, "server-ca")
        self._server_ca.issue("server")
        self._config = self.folder / "nginx.conf"
        self._config.write_text(self._text(nodes, publishers=publishers))
        shutil.copy(NGINX / "publishers.conf", self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    def _text(self, nodes: Sequence[int], *, publishers: bool) -> str:
        """Return the configuration of deploy/ for this machine."""
        changes: dict[str, tuple[str, int]] = {
            "listen 80;": (f"listen 127.0.0.1:{self.plain_port};", 1),
            "listen 443 ": (f"listen 127.0.0.1:{self.port} ", 1),
            "listen 127.0.0.1:8081;": (f"listen 127.0.0.1:{self.status_port};", 1),
            "/run/nginx.pid": (f"{self.folder}/nginx.pid", 1),
            "/var/cache/nginx/": (f"{self.folder}/cache/", 5),
            "/dev/stdout": (f"{self.folder}/access.log", 1),
        }
        for address, port in zip(NODES, nodes, strict=True):
            changes[address] = (f"127.0.0.1:{port}", 2)
        if publishers:
            changes[OPTION] = ("include publishers.conf;", 1)
        return replaced((NGINX / "nginx.conf").read_text(), changes)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def tls(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return what a client needs, with a certificate of its own or without one."""
        context = ssl.create_default_context(cafile=str(self._server_ca.certificate))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    @property
    def server_ca(self) -> Path:
        return self._server_ca.certificate

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text()

    @property
    def error_log(self) -> str:
        return (self.folder / "output").read_text()

    def test(self) -> str:
        """Return what `nginx -t` says of the configuration; raises where it is not valid."""
        done = spawned(
            lambda: subprocess.run([*self._command(), "-t"], capture_output=True, text=True)
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def _command(self) -> list[str]:
        place = ["-p", str(self.folder), "-c", str(self._config), "-e", "stderr"]
        return [self._program, *place]

    def __enter__(self) -> "NginxServer":
        try:
            with (self.folder / "output").open("wb") as output:
                self._process = spawned(
                    lambda: subprocess.Popen(
                        [*self._command(), "-g", "daemon off;"], stdout=output, stderr=output
                    )
                )
            deadline = time.monotonic() + _START_S
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self.error_log)
                time.sleep(0.02)
        except BaseException:
            self.close()
            raise
        return self

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and delete its folder; may be called twice."""
        if self._process is not None:
            # Its workers end with it, whatever is still open.
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)


def replaced(text: str, changes: Mapping[str, tuple[str, int]]) -> str:
    """Return `text` with each key replaced, which has to stand there as often as is said."""
    for old, (new, times) in changes.items():
        assert text.count(old) == times, f"{old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text
