"""Files that the user wrote: read whole or refused with the reason, written whole or not at all; profiles of a folder;
resolv.conf.
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
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


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "work.yaml"
    path.write_text("old\n")
    path.chmod(0o640)
    files.replace(path, "bücher\r\n")
    assert path.read_bytes() == "bücher\r\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["work.yaml"]


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["the usual umask", "a narrow umask"])
def test_a_new_file_and_its_folder_can_be_read_by_all(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.replace(tmp_path / "allowed" / "work.yaml", "new\n")
    finally:
        os.umask(before)
    assert (tmp_path / "allowed").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "allowed" / "work.yaml").stat().st_mode & 0o777 == 0o644


def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    path = tmp_path / "work.yaml"
    path.touch()
    os.chown(path, 1234, 4321)
    files.replace(path, "new\n")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_of_a_link_the_file_is_replaced_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real.yaml").write_text("old\n")
    (tmp_path / "work.yaml").symlink_to("elsewhere/real.yaml")
    files.replace(tmp_path / "work.yaml", "new\n")
    assert (tmp_path / "work.yaml").is_symlink()
    assert (tmp_path / "elsewhere" / "real.yaml").read_text() == "new\n"
    assert os.listdir(tmp_path / "elsewhere") == ["real.yaml"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_where_a_step_fails_the_old_file_is_there_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "work.yaml"
    path.write_text("old\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(files.FileError, match=r"^No space left on device$"):
        files.replace(path, "new\n")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["work.yaml"]


@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "replace"])
def test_a_kill_at_any_step_leaves_a_whole_file_and_no_other_profile(tmp_path: Path, step: str) -> None:
    path = tmp_path / "work.yaml"
    path.write_text("old\n")
    program = f"""
import os, signal, pathlib
from proxyfw.edge import files
real = os.{step}
def killed(*arguments, **more):
    if "{step}" != "open":
        os.kill(os.getpid(), signal.SIGKILL)
    done = real(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)
os.{step} = killed
files.replace(pathlib.Path({str(path)!r}), "new")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old\n"
    assert files.profile_files(tmp_path) == {"work": path}
    assert len(os.listdir(tmp_path)) == 2  # with what it left
    files.replace(path, "new\n")
    assert (path.read_text(), os.listdir(tmp_path)) == ("new\n", ["work.yaml"])


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(files.FileError, match=r"^(File exists|Not a directory)$"):
        files.replace(tmp_path / "file" / "work.yaml", "new\n")
    (tmp_path / "work.yaml").mkdir()
    with pytest.raises(files.FileError, match=r"^Is a directory$"):
        files.replace(tmp_path / "work.yaml", "new\n")
    with pytest.raises(files.FileError, match=r"larger than 1 MiB"):
        files.replace(tmp_path / "large.yaml", "#" * ((1 << 20) + 1))
    assert sorted(os.listdir(tmp_path)) == ["file", "work.yaml"]


def test_new_files_are_written_all_of_them(tmp_path: Path) -> None:
    wanted = {tmp_path / "a" / "b" / "one": "1", tmp_path / "a" / "two": "2"}
    files.write_new(wanted)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == wanted
    assert (tmp_path / "a" / "b" / "one").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("there", ["a/one", "two"])
def test_where_one_file_is_there_no_other_is_written(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).symlink_to("nowhere")
    with pytest.raises(files.FileError, match=rf"^{tmp_path}/{there}: this file is there already"):
        files.write_new({tmp_path / "a" / "one": "1", tmp_path / "two": "2"})
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [tmp_path / there]


@pytest.mark.parametrize(
    ("step", "call"), [("link", 1), ("link", 2), *(("fsync", call) for call in range(1, 6)), ("open", 1), ("open", 3)]
)
def test_where_a_new_file_cannot_be_written_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    calls, real = [], getattr(os, step)

    def full(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **more)

    monkeypatch.setattr(os, step, full)
    with pytest.raises(files.FileError, match=r": No space left on device$"):
        files.write_new({tmp_path / "a" / "one": "1", tmp_path / "two": "2"})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_locked_for_one_at_a_time(tmp_path: Path) -> None:
    busy = pytest.raises(files.FileError, match="another program has locked this folder")
    with files.locked(tmp_path), busy, files.locked(tmp_path, patience=0):
        raise AssertionError
    with files.locked(tmp_path, patience=0):
        pass


def test_a_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    waited = []

    def let_go(seconds: float) -> None:
        waited.append(seconds)
        fcntl.flock(holder, fcntl.LOCK_UN)

    fcntl.flock(holder, fcntl.LOCK_EX)
    monkeypatch.setattr("proxyfw.edge.files.time.sleep", let_go)
    with files.locked(tmp_path):
        assert len(waited) == 1
    os.close(holder)


def test_a_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(files.FileError, match=r"^No such file or directory$"), files.locked(tmp_path / "none"):
        raise AssertionError
