"""Files that the user wrote: read whole or refused with the reason; profiles of a folder; resolv.conf."""

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyfw.edge import files


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("domains: [bücher.de]\r\n".encode())
    assert files.read(tmp_path / "a.yaml") == "domains: [bücher.de]\r\n"


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"#" * (1 << 20))
    assert len(files.read(tmp_path / "a")) == 1 << 20


@pytest.mark.parametrize(
    ("data", "line", "why"),
    [
        pytest.param(b"a\nb\nc\xff\nd", 3, "this line is not UTF-8", id="not UTF-8"),
        pytest.param("domains: [bücher.de]".encode("latin-1"), 1, "this line is not UTF-8", id="Latin-1"),
        pytest.param(b"#" * ((1 << 20) + 1), 0, "the file is larger than 1 MiB", id="too large"),
    ],
)
def test_a_file_that_cannot_be_text_is_refused(tmp_path: Path, data: bytes, line: int, why: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(files.FileError) as refused:
        files.read(tmp_path / "a")
    assert (refused.value.line, str(refused.value)) == (line, why)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=r"^No such file or directory$"):
        files.read(tmp_path / "a")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=r"^this is not a file$"):
        files.read(tmp_path)


def test_the_profiles_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "c.yml", "README", ".hidden.yaml", "d.yaml~", "e.f.yaml"):
        (tmp_path / name).touch()
    assert files.profile_files(tmp_path) == {
        "a": tmp_path / "a.yaml",
        "b": tmp_path / "b.yaml",
        "e.f": tmp_path / "e.f.yaml",
    }


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=r"^No such file or directory$"):
        files.profile_files(tmp_path / "profiles")


@pytest.mark.parametrize(
    ("kind", "one"),
    [
        pytest.param("profiles", "github.yaml", id="profiles"),
        pytest.param("iptables", "fail-safe.nft", id="rulesets"),
    ],
)
def test_what_is_shipped_is_found(kind: str, one: str) -> None:
    assert (files.shipped(kind) / one).is_file()


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        pytest.param("nameserver 10.139.1.1\nnameserver 10.139.1.2\n", ["10.139.1.1", "10.139.1.2"], id="two"),
        pytest.param("# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch lan\n", [], id="comments and others"),
        pytest.param("nameserver\t2001:db8::53  # this one\n", ["2001:db8::53"], id="a tab and a comment"),
        pytest.param("nameserver fe80::1%eth0\n", ["fe80::1"], id="an IPv6 address with a zone"),
        pytest.param("nameserver dns.example\nnameserver 192.0.2.1", ["192.0.2.1"], id="a name is passed over"),
        pytest.param("nameserver\n", [], id="no address"),
        pytest.param("", [], id="an empty file"),
    ],
)
def test_the_resolvers_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, servers: list[str]
) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    monkeypatch.setattr(files, "RESOLV_CONF", tmp_path / "resolv.conf")
    assert files.system_resolvers() == tuple((ip_address(server), 53) for server in servers)


def test_without_resolv_conf_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RESOLV_CONF", tmp_path / "resolv.conf")
    assert files.system_resolvers() == ()


def test_a_pipe_is_no_file_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(files.FileError, match=r"^this is not a file$"):
        files.read(tmp_path / "a.yaml")


def test_a_device_without_end_is_no_file() -> None:
    with pytest.raises(files.FileError, match=r"^this is not a file$"):
        files.read(Path("/dev/zero"))
