"""The certificates of a cluster: one authority for servers, clients and the aggregator."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from processes import binary

if TYPE_CHECKING:
    from pathlib import Path

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


def make_authority(folder: Path) -> Certificate:
    """Make ``ca.crt`` and ``ca.key`` in `folder`."""
    made = Certificate(folder / "ca.crt", folder / "ca.key")
    uses = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    _openssl(made, "/CN=fleetopt-cluster", uses)
    return made


def make_certificate(authority: Certificate, folder: Path, name: str, hosts: tuple[str, ...]) -> Certificate:
    """Make ``name.crt`` and ``name.key`` in `folder`, for a server and a client.

    Parameters
    ----------
    authority : Certificate
    folder : Path
    name : str
        Also the common name.
    hosts : tuple of str
        Names of the server; 127.0.0.1 is always one.
    """
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    names = ",".join(["IP:127.0.0.1", *(f"DNS:{host}" for host in hosts)])
    uses = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth,clientAuth",
        f"subjectAltName={names}",
    ]
    signer = ["-CA", str(authority.certificate), "-CAkey", str(authority.key)]
    _openssl(made, f"/CN={name}", uses, signer)
    return made


def _openssl(made: Certificate, subject: str, uses: list[str], signer: list[str] | None = None) -> None:
    extensions = [word for use in uses for word in ("-addext", use)]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    command = [binary("openssl"), "req", "-x509", *_NEW_KEY, *files, "-days", "365", "-subj", subject]
    subprocess.run([*command, *extensions, *(signer or [])], check=True, capture_output=True)
