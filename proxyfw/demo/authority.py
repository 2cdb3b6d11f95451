"""A certificate authority of the demo's own, made with the openssl command, and real certificates from it."""

import subprocess
from collections.abc import Iterable
from pathlib import Path


class Authority:
    """Keeps everything in one folder; `ca` is the certificate for clients to trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"

    def start(self) -> None:
        """Makes the authority."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"),
            *("-addext", "keyUsage=critical,keyCertSign", "-subj", "/CN=proxyfw demo authority"),
            *("-keyout", str(self._key), "-out", str(self.ca)),
        )

    def certificate(self, names: Iterable[str]) -> tuple[Path, Path]:
        """A certificate for these host names: (certificate, key)."""
        wanted = list(names)
        certificate, key = self._folder / f"{wanted[0]}.pem", self._folder / f"{wanted[0]}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"),
            *("-CA", str(self.ca), "-CAkey", str(self._key), "-subj", f"/CN={wanted[0]}"),
            *("-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in wanted)}"),
            *("-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key), "-out", str(certificate)),
        )
        return certificate, key


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
