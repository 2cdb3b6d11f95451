"""The process that reads a feed: what it answers, that it has no rights, and that nothing it does is more than its own
failure.
"""

import asyncio
import json
import os
import platform
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from https_server import Authority, Server, document, redirect, serving
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.edge import feedprocess
from proxyfw.edge.feedprocess import Answer, Changed, Failed, Same, ask

PATIENCE = 30.0  # seconds, where they are not to matter
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
WORKER = ("-I", "-B", "-m", "proxyfw.feedworker")


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


Feed = Callable[..., Path]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    """Writes a Python feed into a folder that its owner alone may read."""

    def write(text: str, name: str = "mine.py") -> Path:
        folder = tmp_path / "feeds"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / name).write_text(dedent(text))
        return folder / name

    return write


def refreshed(path: Path, current: list[str] | None = None, patience: float = PATIENCE) -> Answer:
    return run(ask({"python": str(path), "current": current or []}, patience))


def saying(expression: str) -> str:
    """A feed that fails, and so tells what is true inside."""
    return f"import os, socket, subprocess\ndef refresh(current):\n    raise LookupError({expression})\n"


# Documents of the web


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def server(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the process trusts, though root alone may read why."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with serving(authority.certificate()) as made:
        yield made


def fetched(
    url: str, format: str, *select: str, etag: str = "", patience: float = PATIENCE, through: Sequence[object] = ()
) -> Answer:
    request: dict[str, object] = {"url": url, "format": format, "select": select, "etag": etag, "modified": ""}
    request["through"] = list(through) if through else None
    return run(ask(request, patience))


def test_a_list_of_the_web(server: Server) -> None:
    body = b"# ours\n192.0.2.128/25\n192.0.2.0/25\n2001:db8::1\n"
    url = server.serve("/list", document(body, 'ETag: "one"', "Last-Modified: a date"))
    assert fetched(url, "text") == Changed(["192.0.2.0/24", "2001:db8::1/128"], '"one"', "a date")


def test_a_selection_of_json(server: Server) -> None:
    url = server.serve("/meta", document(b'{"git": ["192.0.2.0/24"], "web": ["198.51.100.0/24"]}'))
    assert fetched(url, "json", "git") == Changed(["192.0.2.0/24"], "", "")


def test_a_list_that_is_known(server: Server) -> None:
    url = server.serve("/list", document(b"", status="304 Not Modified"))
    assert fetched(url, "text", etag='"one"') == Same()
    assert server.asked[0].headers["if-none-match"] == '"one"'


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(document(b"", status="503 Busy"), "HTTP status 503 (Service Unavailable)", id="a status"),
        pytest.param(redirect("http://localhost/"), "redirect to http:// refused", id="a redirect"),
        pytest.param(document(b"<html>\n<h1>Oops</h1>\n"), "line 1", id="a page in place of a list"),
        pytest.param(document(b"192.0.2.1\n\xff\xfe\n"), "UTF-8", id="no UTF-8"),
    ],
)
def test_a_list_that_is_none(server: Server, answer: bytes, error: str) -> None:
    failed = fetched(server.serve("/list", answer), "text")
    assert isinstance(failed, Failed)
    assert error in failed.error


@pytest.mark.parametrize("body", [b"[" * 100_000, b"9" * 5000, b'{"a": NaN}', b'"\\ud800"', b"\xff", b"{}", b""])
def test_json_that_is_meant_to_harm(server: Server, body: bytes) -> None:
    failed = fetched(server.serve("/list", document(body)), "json", "git")
    assert isinstance(failed, Failed)
    assert "without an answer" not in failed.error


def test_a_certificate_that_is_not_trusted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve("/list", document(b"192.0.2.1\n"))
    monkeypatch.delenv("SSL_CERT_FILE")
    assert fetched(url, "text") == Failed("certificate verify failed: unable to get local issuer certificate")


def test_a_list_that_comes_through_a_proxy_or_not_at_all(server: Server) -> None:
    url = server.serve("/list", document(b"192.0.2.1\n"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        through = ("socks5", "127.0.0.1", taken.getsockname()[1], "", "")
        failed = fetched(url, "text", through=through)
    assert failed == Failed("the upstream proxy: not reached: connection refused")
    assert server.asked == []


def test_a_server_that_takes_its_time(server: Server) -> None:
    server.pages["/list"] = lambda peer: peer.drip(b"a", b"HTTP/1.1 200 OK\r\n")
    failed = fetched(server.url("/list"), "text", patience=1)
    assert failed in (Failed("timed out"), Failed("timed out after 1 s")), (
        "by itself, or by us where it is slow to start"
    )


# Python feeds

WANTED = "return a list of addresses, or False where nothing changed"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param(
            """
            def refresh(current):
                return ["192.0.2.1", "192.0.2.0", "2001:db8::/32"]
            """,
            Changed(["192.0.2.0/31", "2001:db8::/32"], "", ""),
            id="a list",
        ),
        pytest.param(
            """
            def refresh(current):
                for end in range(4):
                    yield f"192.0.2.{end}"
            """,
            Changed(["192.0.2.0/30"], "", ""),
            id="a generator",
        ),
        pytest.param(
            """
            from ipaddress import ip_address, ip_network
            def refresh(current):
                return {ip_address("192.0.2.1"), ip_network("198.51.100.0/24")}
            """,
            Changed(["192.0.2.1/32", "198.51.100.0/24"], "", ""),
            id="addresses that are no text",
        ),
        pytest.param(
            """
            def refresh(current):
                assert type(current) is list
                return [*current, "203.0.113.1"]
            """,
            Changed(["192.0.2.0/24", "203.0.113.1/32"], "", ""),
            id="what was there, and more",
        ),
        pytest.param("refresh = lambda current: False", Same(), id="False: nothing changed"),
        pytest.param("refresh = lambda current: []", Changed([], "", ""), id="nothing: for others to judge"),
        pytest.param(
            """
            import os, subprocess, sys
            print("{}")
            def refresh(current):
                print('{"status": "same"}', flush=True)
                sys.stdout.write("x" * 1_000_000)
                os.write(1, b"{}")
                subprocess.run(["echo", "{}"])
                return ["192.0.2.1"]
            """,
            Changed(["192.0.2.1/32"], "", ""),
            id="what it prints is not the answer",
        ),
        pytest.param(
            """
            import subprocess
            def refresh(current):
                done = subprocess.run(["sh", "-c", "echo 192.0.2.1; cat > /dev/null"], capture_output=True, input=b"x")
                return done.stdout.decode().split()
            """,
            Changed(["192.0.2.1/32"], "", ""),
            id="a program that it starts",
        ),
        pytest.param(
            """
            from concurrent.futures import ThreadPoolExecutor
            def refresh(current):
                with ThreadPoolExecutor(16) as pool:
                    return list(pool.map("192.0.2.{}".format, range(256)))
            """,
            Changed(["192.0.2.0/24"], "", ""),
            id="threads",
        ),
        pytest.param(
            """
            import atexit, threading
            def refresh(current):
                threading.Thread(target=threading.Event().wait).start()
                atexit.register(threading.Event().wait)
                return ["192.0.2.1"]
            """,
            Changed(["192.0.2.1/32"], "", ""),
            id="threads that never end",
        ),
        pytest.param(
            """
            from dataclasses import dataclass
            @dataclass
            class One:
                text: "str"
            def refresh(current):
                return [One("192.0.2.1").text]
            if __name__ == "__main__":
                raise SystemExit
            """,
            Changed(["192.0.2.1/32"], "", ""),
            id="a module as any other",
        ),
    ],
)
def test_a_python_feed(feed: Feed, text: str, answer: Answer) -> None:
    assert refreshed(feed(text), ["192.0.2.0/24"]) == answer


def test_a_python_feed_has_nothing_the_first_time(feed: Feed) -> None:
    assert refreshed(feed(saying("current"))) == Failed("mine.py:3: LookupError: []")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("", "mine.py: it has no function refresh(current)", id="an empty file"),
        pytest.param("refresh = []", "mine.py: it has no function refresh(current)", id="no function"),
        pytest.param("\ndef refresh(:\n", "mine.py:2: invalid syntax", id="no Python"),
        pytest.param("\nx = '\0'", "mine.py:2: there is a null byte", id="a null byte"),
        pytest.param(
            "import nothing_of_the_kind",
            "mine.py:1: ModuleNotFoundError: No module named 'nothing_of_the_kind'",
            id="a module that is not there",
        ),
        pytest.param(
            "def refresh(): pass",
            "mine.py: TypeError: refresh() takes 0 positional arguments but 1 was given",
            id="no argument",
        ),
        pytest.param("def refresh(current):\n  return {}['prefixes']", "mine.py:2: KeyError: 'prefixes'", id="a fault"),
        pytest.param(
            "def refresh(current):\n  yield '192.0.2.1'\n  1 / 0",
            "mine.py:3: ZeroDivisionError: division by zero",
            id="a fault on the way",
        ),
        pytest.param(
            "def refresh(current):\n  raise LookupError", "mine.py:2: LookupError", id="a fault without a word"
        ),
        pytest.param(
            "def refresh(current):\n  raise LookupError('a\\nb\\x1b[0m' + 'c' * 999)",
            "mine.py:2: LookupError: a b [0m" + "c" * 269,
            id="a long word",
        ),
        pytest.param(
            "class E(Exception):\n  def __str__(self): 1 / 0\ndef refresh(current):\n  raise E",
            "mine.py:4: E",
            id="a word that is a fault",
        ),
        pytest.param("def refresh(current):\n  exit()", "mine.py:2: it ended itself (sys.exit)", id="exit"),
        pytest.param(
            "import sys\ndef refresh(current):\n  sys.exit()", "mine.py:3: it ended itself (sys.exit)", id="sys.exit"
        ),
        pytest.param(
            "def refresh(current):\n  raise KeyboardInterrupt", "mine.py:2: KeyboardInterrupt", id="an interrupt"
        ),
        pytest.param(
            "def refresh(current):\n  refresh(current)",
            "mine.py:2: RecursionError: maximum recursion depth exceeded",
            id="endless recursion",
        ),
        pytest.param(
            "def refresh(current):\n  return bytes(2 << 30)", "it takes more than 1 GiB of memory", id="much memory"
        ),
        pytest.param("refresh = lambda current: None", "mine.py: refresh returned None; " + WANTED, id="nothing"),
        pytest.param("refresh = lambda current: True", "mine.py: refresh returned True; " + WANTED, id="True"),
        pytest.param(
            "refresh = lambda current: '192.0.2.1'", "mine.py: refresh returned one str; " + WANTED, id="one text"
        ),
        pytest.param(
            "refresh = lambda current: 0",
            "mine.py: refresh returned one int; " + WANTED,
            id="a number that is like False",
        ),
        pytest.param(
            "import os\ndef refresh(current):\n  os._exit(3)", "the process ended without an answer", id="the end"
        ),
        pytest.param(
            "import os\ndef refresh(current):\n  os.kill(os.getpid(), 11)",
            "the process was killed by SIGSEGV without an answer",
            id="a crash",
        ),
        pytest.param(
            "import os, sys\ndef refresh(current):\n  print('ouch', file=sys.stderr)\n  os.abort()",
            "the process was killed by SIGABRT without an answer: ouch",
            id="a crash with a word",
        ),
        pytest.param(
            "import os\ndef refresh(current):\n  if pid := os.fork(): os.waitpid(pid, 0)\n  return []",
            "the process gave an answer that cannot be read",
            id="two answers",
        ),
    ],
)
def test_a_python_feed_that_fails(feed: Feed, text: str, error: str) -> None:
    assert refreshed(feed(text)) == Failed(error)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        pytest.param("example.org", '"example.org" is not an address or network', id="a name"),
        pytest.param("", '"" is not an address or network', id="nothing"),
        pytest.param("192.0.2.1/24", '"192.0.2.1/24" has bits beyond its prefix', id="bits beyond the prefix"),
        pytest.param("fe80::1%eth0", '"fe80::1%eth0" is not an address or network', id="a zone"),
        pytest.param("192.0.2.1:22", '"192.0.2.1:22" is not an address or network', id="a port"),
        pytest.param("192.0.2.256", '"192.0.2.256" is not an address or network', id="too large a number"),
        pytest.param(5, '"5" is not an address or network', id="a number"),
        pytest.param(None, '"None" is not an address or network', id="None"),
        pytest.param(b"192.0.2.1", "\"b'192.0.2.1'\" is not an address or network", id="bytes"),
        pytest.param("\ud800", '"?" is not an address or network', id="half a character"),
    ],
)
def test_an_entry_that_is_no_address(feed: Feed, entry: object, error: str) -> None:
    failed = refreshed(feed(f"refresh = lambda current: ['192.0.2.1', {entry!r}]"))
    assert failed == Failed(f"mine.py: in what refresh returned, {error}")


def test_a_python_feed_without_end(feed: Feed) -> None:
    failed = refreshed(feed("import itertools\nrefresh = lambda current: itertools.repeat('192.0.2.1')"))
    assert failed == Failed("mine.py: refresh returned more than 262,144 addresses")


def test_a_python_feed_that_only_computes(feed: Feed) -> None:
    failed = refreshed(feed("def refresh(current):\n  while True: pass"), patience=1)
    assert failed in (Failed("timed out after 1 s"), Failed("it takes more time of the processor than it has"))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda path: None, "mine.py: No such file or directory", id="no file"),
        pytest.param(lambda path: path.mkdir(parents=True), "mine.py: this is not a file", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b"#\n\xff\n"), "mine.py:2: this line is not UTF-8", id="no text"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], object], error: str) -> None:
    make(tmp_path / "mine.py")
    assert refreshed(tmp_path / "mine.py") == Failed(error)


# What it may do


@as_root
@pytest.mark.parametrize(
    ("expression", "told"),
    [
        pytest.param("{{*os.getresuid()}} == {{{nobody}}}", "True", id="it is nobody"),
        pytest.param("0 in os.getresgid() or os.getgroups()", "[]", id="of nobody's group alone"),
        pytest.param(
            "[line.split() for line in open('/proc/self/status') if line.startswith(('CapI', 'CapP', 'CapE', 'CapA'))]",
            str([[f"Cap{kind}:", "0" * 16] for kind in ("Inh", "Prm", "Eff", "Amb")]),
            id="it has no capability",
        ),
        pytest.param("'NoNewPrivs:\\t1\\n' in list(open('/proc/self/status'))", "True", id="and can get none"),
        pytest.param("os.getsid(0) == os.getpid()", "True", id="in a session of its own"),
        pytest.param(
            "sorted(os.environ)", str(sorted(["HOME", "LANG", "MALLOC_ARENA_MAX", "PATH"])), id="its environment"
        ),
        pytest.param("os.getcwd()", "/", id="its folder"),
        pytest.param("os.kill(os.getppid(), 0)", None, id="no signal to the service"),
        pytest.param("open('{state}/kept')", None, id="no file of root's is read"),
        pytest.param("open('{state}/kept', 'w')", None, id="or written"),
        pytest.param("os.listdir('{state}')", None, id="no folder of root's"),
        pytest.param("os.setuid(0)", None, id="it does not become root"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", None, id="it sends no packets of its own"),
        pytest.param("os.fstat(200)", "[Errno 9] Bad file descriptor", id="it has no file of the service's"),
    ],
)
def test_what_it_may_do(
    feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str, told: str | None
) -> None:
    """None: the kernel refuses."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("SECRET", "word")
    for name in ("LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "kept").touch(mode=0o600)
    nobody = pwd.getpwnam("nobody").pw_uid
    with _inheritable(200):
        failed = refreshed(feed(saying(expression.format(state=tmp_path, nobody=nobody))))
    assert isinstance(failed, Failed)
    if told is None:
        assert failed.error.startswith("mine.py:3: PermissionError: ")
    else:
        assert failed.error.partition("Error: ")[2] == told


def _landlock() -> int:
    """The version that this kernel has."""
    asked = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))"
    return int(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("open('{folder}/new', 'w')", id="made"),
        pytest.param("os.mkdir('{folder}/new')", id="made, a folder"),
        pytest.param("os.symlink('a', '{folder}/new')", id="made, a link"),
        pytest.param("socket.socket(socket.AF_UNIX).bind('{folder}/new')", id="made, a socket"),
        pytest.param("open('{folder}/kept', 'r+')", id="written"),
        pytest.param("os.truncate('{folder}/kept', 0)", id="emptied"),
        pytest.param("os.rename('{folder}/kept', '{folder}/new')", id="renamed"),
        pytest.param("os.unlink('{folder}/kept')", id="deleted"),
    ],
)
def test_no_file_is_changed_even_where_everybody_may(feed: Feed, expression: str) -> None:
    if _landlock() < 3:
        pytest.skip("this kernel has no Landlock, or an old one")
    with _open_to_all() as folder:
        failed = refreshed(feed(saying(expression.format(folder=folder))))
        assert [path.name for path in folder.iterdir()] == ["kept"]
        assert (folder / "kept").read_text() == "kept"
    assert isinstance(failed, Failed)
    assert failed.error.startswith("mine.py:3: PermissionError: ")


@contextmanager
def _open_to_all() -> Iterator[Path]:
    """A folder where everybody may do everything, and a file."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "kept").write_text("kept")
        (folder / "kept").chmod(0o666)
        yield folder


@contextmanager
def _inheritable(number: int) -> Iterator[None]:
    read, write = os.pipe()
    os.dup2(read, number, inheritable=True)
    try:
        yield
    finally:
        for each in (read, write, number):
            os.close(each)


SERVICE = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups")
CAPABLE = ("--inh-caps=+net_admin,+net_bind_service", "--ambient-caps=+net_admin,+net_bind_service")

FILTER = """
import ctypes, os, platform, struct, sys
numbers = {{"x86_64": (126, 160), "aarch64": (91, 164)}}[platform.machine()]  # capset, setrlimit
code = [(0x20, 0, 0, 0)]  # A = the number of the call
for number in (*numbers, 444, 445, 446):  # and Landlock's
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]  # EPERM
code += [(0x06, 0, 0, 0x7FFF0000)]
words = b"".join(struct.pack("HBBI", *each) for each in code)
text = ctypes.create_string_buffer(words)
program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0, ctypes.get_errno()
os.execv({python!r}, [{python!r}, *{worker!r}])
"""
"""What systemd's SystemCallFilter=~@privileged @resources leaves of the calls by which rights are given up."""


def _as_service(path: Path, *before: str) -> dict[str, Any]:
    """The worker's answer, where what starts it is no root."""
    request = json.dumps({"python": str(path), "current": [], "patience": PATIENCE})
    done = subprocess.run([*SERVICE, *before], input=request, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


STATUS = (
    "[line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapP', 'CapE', 'CapA', 'NoNewP'))]"
)
NOTHING = str(["0" * 16] * 3 + ["1"])


READABLE = pytest.mark.skipif(
    not all(folder.stat().st_mode & 1 for folder in Path(sys.executable).absolute().parents),
    reason="this Python is where no other user can run it",
)


@as_root
@READABLE
@pytest.mark.parametrize(
    "before",
    [
        pytest.param([sys.executable, *WORKER], id="a user"),
        pytest.param([*CAPABLE, sys.executable, *WORKER], id="a service with two capabilities"),
        pytest.param(
            [*CAPABLE, sys.executable, "-c", FILTER.format(python=sys.executable, worker=WORKER)],
            id="a service whose system calls are filtered",
            marks=pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of calls"),
        ),
    ],
)
def test_where_it_is_not_root_it_has_no_capability_either(before: list[str]) -> None:
    with _open_to_all() as folder:
        (folder / "mine.py").write_text(saying(STATUS))
        assert _as_service(folder / "mine.py", *before) == {
            "status": "failed",
            "error": f"mine.py:3: LookupError: {NOTHING}",
        }


@as_root
@READABLE
@pytest.mark.parametrize(
    "expression", ["os.kill({pid}, 0)", "open('{folder}/kept', 'r+')", "os.unlink('{folder}/kept')"]
)
def test_where_it_is_not_root_the_same_users_things_are_safe(expression: str) -> None:
    if _landlock() < 6:
        pytest.skip("this kernel has no Landlock, or an old one")
    with _open_to_all() as folder, subprocess.Popen([*SERVICE, "sleep", "1000"]) as other:
        try:
            os.chown(folder / "kept", 65533, 65533)
            (folder / "mine.py").write_text(saying(expression.format(pid=other.pid, folder=folder)))
            answer = _as_service(folder / "mine.py", *CAPABLE, sys.executable, *WORKER)
        finally:
            other.kill()
    assert answer["error"].startswith("mine.py:3: PermissionError: "), answer


@as_root
def test_a_root_that_cannot_become_another_reads_nothing(feed: Feed) -> None:
    request = json.dumps({"python": str(feed("refresh = lambda current: []")), "current": [], "patience": PATIENCE})
    command = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid", sys.executable, *WORKER]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout) == {
        "status": "failed",
        "error": "this root cannot become another user: Operation not permitted",
    }


# How it ends


class Line:
    """A connection that a feed opens and hands on to what it starts: it ends when the last of them has ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port = listener.getsockname()[1]

    @property
    def text(self) -> str:
        """For the first lines of a feed: `hold(...)` starts a process that has the line and sleeps."""
        return dedent(f"""
            import socket, subprocess, time
            line = socket.create_connection(("127.0.0.1", {self.port}))
            def hold(**options):
                child = subprocess.Popen(["sleep", "1000"], pass_fds=[line.fileno()], **options)
                line.sendall(b"%d\\n" % child.pid)
        """)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
        """The process that holds the line, and the line."""
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self._listener)
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            yield int(await reader.readline()), reader
        finally:
            writer.close()
            await writer.wait_closed()


async def _ends(reader: asyncio.StreamReader) -> bool:
    """Waits until it has ended. It fails by the time-out of `run`."""
    with suppress(ConnectionResetError):
        return await reader.read() == b""
    return True


@pytest.fixture
def line() -> Iterator[Line]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Line(listener)


def test_past_its_patience_it_is_killed_with_all_that_it_started(
    feed: Feed, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedprocess, "_GRACE", 0.0)
    path = feed(line.text + "def refresh(current):\n  hold()\n  time.sleep(1000)\n")

    async def scenario() -> Answer:
        asking = asyncio.create_task(ask({"python": str(path), "current": []}, 1.5))
        async with line.taken() as (_, reader):
            assert await _ends(reader)
        return await asking

    assert run(scenario()) == Failed("timed out after 1.5 s")


def test_cancelled_it_is_killed_with_all_that_it_started(feed: Feed, line: Line) -> None:
    path = feed(line.text + "def refresh(current):\n  hold()\n  time.sleep(1000)\n")

    async def scenario() -> Answer:
        asking = asyncio.create_task(ask({"python": str(path), "current": []}, PATIENCE))
        async with line.taken() as (_, reader):
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await _ends(reader)
        return Same()

    run(scenario())


def test_what_it_started_does_not_outlive_its_answer(feed: Feed, line: Line) -> None:
    path = feed(line.text + "def refresh(current):\n  hold()\n  return ['192.0.2.1']\n")

    async def scenario() -> Answer:
        asking = asyncio.create_task(ask({"python": str(path), "current": []}, PATIENCE))
        async with line.taken() as (_, reader):
            assert await _ends(reader)
        return await asking

    assert run(scenario()) == Changed(["192.0.2.1/32"], "", "")


def test_what_got_away_does_not_keep_the_answer(feed: Feed, line: Line) -> None:
    path = feed(line.text + "def refresh(current):\n  hold(start_new_session=True)\n  return ['192.0.2.1']\n")

    async def scenario() -> Answer:
        asking = asyncio.create_task(ask({"python": str(path), "current": []}, PATIENCE))
        async with line.taken() as (pid, _):
            try:
                return await asking
            finally:
                os.kill(pid, signal.SIGKILL)

    assert run(scenario()) == Changed(["192.0.2.1/32"], "", "")


def test_it_dies_with_the_service(feed: Feed, line: Line) -> None:
    path = feed(line.text + "def refresh(current):\n  line.sendall(b'0\\n')\n  time.sleep(1000)\n")
    service = f"""
import asyncio
from proxyfw.edge.feedprocess import ask
asyncio.run(ask({{"python": {str(path)!r}, "current": []}}, {PATIENCE}))
"""

    async def scenario() -> Answer:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", service)
        async with line.taken() as (_, reader):
            process.kill()
            await process.wait()
            assert await _ends(reader)
        return Same()

    run(scenario())


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of the worker."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("changed") | st.just("failed"),
    lambda inside: st.lists(inside) | st.dictionaries(st.sampled_from(["status", "networks", "etag", "error"]), inside),
)
UNREADABLE = Failed("the process gave an answer that cannot be read")


def _changed(**other: object) -> str:
    return json.dumps({"status": "changed", "networks": ["192.0.2.0/24"], "etag": "", "modified": ""} | other)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param('{"status": "same"}', Same(), id="the same"),
        pytest.param(_changed(), Changed(["192.0.2.0/24"], "", ""), id="a list"),
        pytest.param("garbage", UNREADABLE, id="no JSON"),
        pytest.param('{"status": "same"}{"status": "same"}', UNREADABLE, id="two answers"),
        pytest.param("\xff", UNREADABLE, id="no UTF-8"),
        pytest.param("[" * 5000, UNREADABLE, id="very deep"),
        pytest.param("[" + "[]," * 300_000 + "[]]", UNREADABLE, id="very many"),
        pytest.param("9" * 5000, UNREADABLE, id="a very long number"),
        pytest.param("null", UNREADABLE, id="no object"),
        pytest.param("{}", UNREADABLE, id="an empty object"),
        pytest.param('{"status": "fine"}', UNREADABLE, id="another status"),
        pytest.param(_changed(networks=None), UNREADABLE, id="no networks"),
        pytest.param(_changed(networks="192.0.2.0/24"), UNREADABLE, id="networks that are no list"),
        pytest.param(_changed(networks=[5]), UNREADABLE, id="a network that is no text"),
        pytest.param(_changed(networks=["192.0.2.0/24; drop"]), UNREADABLE, id="a network that is a statement"),
        pytest.param(_changed(networks=["192.0.2.0/24\n"]), UNREADABLE, id="a network and a line break"),
        pytest.param(_changed(etag=5), UNREADABLE, id="an etag that is no text"),
        pytest.param(_changed(etag="a\r\nb"), UNREADABLE, id="an etag of two lines"),
        pytest.param(_changed(modified="x" * 1025), UNREADABLE, id="a long date"),
        pytest.param('{"status": "failed", "error": 5}', UNREADABLE, id="an error that is no text"),
        pytest.param('{"status": "failed", "error": ""}', Failed("it failed, and does not say why"), id="no error"),
        pytest.param(
            json.dumps({"status": "failed", "error": "a\n\x1b[2J\u202eb" + "c" * 999}),
            Failed("a [2J b" + "c" * 293),
            id="an error that is meant for the terminal",
        ),
        pytest.param(
            "x" * (feedprocess.MAX_ANSWER + 1), Failed("the answer of the process is longer than 8 MiB"), id="too long"
        ),
        pytest.param("", Failed("the process ended without an answer"), id="nothing"),
    ],
)
def test_what_it_says_is_checked(worker: Callable[[str], None], tmp_path: Path, said: str, answer: Answer) -> None:
    (tmp_path / "said").write_bytes(said.encode("latin-1"))
    worker(f"cat > /dev/null; cat {tmp_path}/said")
    assert refreshed(tmp_path / "mine.py") == answer


@given(st.binary(max_size=64) | JSON.map(json.dumps).map(str.encode))
def test_no_answer_is_more_than_unreadable(words: bytes) -> None:
    assert feedprocess._read(words) is None or b'"status"' in words


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        pytest.param("yes", Failed("the answer of the process is longer than 8 MiB"), id="an answer without end"),
        pytest.param(
            "cat > /dev/null; yes ouch | head -c 3000000 >&2; echo 'the \033 end' >&2",
            Failed("the process ended without an answer: the end"),
            id="much to complain of",
        ),
        pytest.param("exit 1", Failed("the process ended without an answer"), id="it does not hear the question"),
        pytest.param("kill -9 $$", Failed("the process was killed by SIGKILL without an answer"), id="it is killed"),
        pytest.param(
            "kill -XCPU $$", Failed("it takes more time of the processor than it has"), id="it has had its time"
        ),
        pytest.param(
            """cat > /dev/null; echo '{"status": "same"}'; exec 1>&- 2>&-; sleep 0.1""",
            Same(),
            id="it says it, and ends later",
        ),
    ],
)
def test_how_it_may_end(worker: Callable[[str], None], tmp_path: Path, script: str, answer: Answer) -> None:
    worker(script)
    many = [f"192.0.2.{end}/32" for end in range(256)] * 400
    assert refreshed(tmp_path / "mine.py", many) == answer


def test_a_process_that_does_not_end_is_killed(
    worker: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedprocess, "_GRACE", 0.0)
    worker("""cat > /dev/null; echo '{"status": "same"}'; exec 1>&- 2>&-; exec sleep 1000""")
    assert refreshed(tmp_path / "mine.py", patience=0.5) == Failed("timed out after 0.5 s")


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    failed = refreshed(tmp_path / "mine.py")
    assert failed == Failed("the process cannot be started: No such file or directory")
