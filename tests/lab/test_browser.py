"""A real browser: a permitted page loads to its end, though most of what it wants comes from refused names."""

import re
import shutil

import pytest

from lab.names_world import MAIL4
from lab.sockets import Server

REFUSED = [f"ad{number}.refused.example" for number in range(10)]
IMAGES = "".join(f'<img src="http://{name}/{number}.png">' for name in REFUSED for number in range(2))
PAGE = f"""\
<!doctype html><title>page</title><body>{IMAGES}<img src="http://img.wild.example/own.png"><script>
addEventListener("load", () => document.body.append("loaded in " + Math.round(performance.now()) + " ms"));
</script>"""
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


def serve(sock):
    """A web server of one page: the handler for `Server`."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(65536)
        if not piece:
            return ""
        head += piece
    body = PAGE.encode()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
    sock.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return re.search(rb"(?i)\r\nhost: *([^\r]*)", head)[1].decode()


@pytest.fixture
def chromium(names, tmp_path):
    """Opens a page, and answers with what is then in it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")

    def show(client, url):
        command = [program, *QUIET, f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", url]
        return names.lab.inside(client, *command, timeout=60).stdout

    return show


def test_a_page_loads_to_its_end_and_what_it_was_refused_is_in_the_log(names, chromium):
    for name in ("page.wild.example", "img.wild.example"):
        names.zone.records[name] = [f"60 A {MAIL4}"]
    with Server(names.lab, MAIL4, 80, serve) as server:
        shown = chromium("dev", "http://page.wild.example/")
        assert {server.result(), server.result()} == {"page.wild.example", "img.wild.example"}

    assert re.search(r"loaded in \d+ ms", shown), shown
    for name in REFUSED:
        names.expect(client="dev", name=name, verdict="deny", reason="no-match", protocol="dns")
    assert not names.zone.names() & set(REFUSED)


def test_a_refused_page_is_an_error_of_the_browsers_own(names, chromium):
    assert "loaded in" not in chromium("dev", "http://refused-page.example/")
    names.expect(client="dev", name="refused-page.example", verdict="deny", reason="no-match")
