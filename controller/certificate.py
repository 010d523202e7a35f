"""The certificate of the secure metrics: from files that may change, or one signed by itself."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGER = logging.getLogger("fleetopt.controller")

_VALIDITY = timedelta(days=3650)


class FileCertificate:
    """A certificate and its key in files, read again when they change.

    Parameters
    ----------
    certificate, key : Path
        PEM files.

    Raises
    ------
    OSError
        When they cannot be read, or do not belong together (`ssl.SSLError` is one).
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._tried = self._state()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection.

        Files that are being replaced, and so missing or not yet a pair, leave the one before in use.
        """
        try:
            state = self._state()
            if state != self._tried:
                self._tried = state
                self._context = self._load()
                LOGGER.info("the certificate in %s was read again", self._certificate)
        except OSError as error:
            LOGGER.warning(
                "the certificate in %s is not used, the one before is: %s", self._certificate, error
            )
        return self._context

    def _load(self) -> ssl.SSLContext:
        try:
            return _context(str(self._certificate), str(self._key))
        except ssl.SSLError as error:
            pair = f"{self._certificate} and {self._key} are no certificate and its key"
            raise ssl.SSLError(f"{pair}: {error}") from error

    def _state(self) -> tuple[tuple[int, int, int], ...]:
        # Kubernetes replaces the directory behind a link, so the files are others, not only newer.
        states = (os.stat(path) for path in (self._certificate, self._key))
        return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)


def self_signed() -> ssl.SSLContext:
    """Return a context with a new key and a certificate for this host that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleetopt-controller")])
    names = [x509.DNSName(host) for host in dict.fromkeys(("localhost", socket.gethostname()))]
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks differ.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with _as_file(pem) as path:
        return _context(path, path)


def _context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give a path under which OpenSSL can read a content; where there are such files, one in memory.

    A container has a read-only file system, and a key is better on no disk.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificate")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
