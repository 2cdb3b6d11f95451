"""A new policy: all of it or nothing, for new connections and for open ones."""

import signal
import socket
from contextlib import ExitStack, suppress

import pytest

from lab import control
from lab.hellos import hello
from lab.sockets import Server, connect, echo, eventually, read_all, read_until
from lab.world import AT_HOME, CLIENTS, OPEN4, RAW4


def reload_by_command(lab):
    done = lab.ask("reload")
    assert done.returncode == 0, done.stdout


def reload_by_signal(lab):
    before = control.status(lab)["reloaded"]
    lab.service.send_signal(signal.SIGHUP)
    assert eventually(lambda: control.status(lab)["reloaded"] > before)


@pytest.mark.parametrize("reload", [reload_by_command, reload_by_signal], ids=["by command", "by SIGHUP"])
def test_a_new_policy_holds_for_what_comes(spare_lab, reload):
    assert spare_lab.curl("study", "--max-time", "2", "https://github.com/").returncode == 35

    spare_lab.write_config(CLIENTS | {"study": {"profiles": ["github"], "dns": "all"}})
    reload(spare_lab)

    assert spare_lab.curl("study", "https://github.com/").returncode == 0
    assert spare_lab.curl("study", "--max-time", "2", "https://en.wikipedia.org/").returncode == 35


@pytest.mark.parametrize("reload", [reload_by_command, reload_by_signal], ids=["by command", "by SIGHUP"])
def test_open_connections_that_it_forbids_are_closed_and_others_live(spare_lab, spare_log, reload):
    lab = spare_lab
    with ExitStack() as stack:
        for address in (RAW4, AT_HOME):
            stack.enter_context(Server(lab, address, 443, echo))
        forbidden = stack.enter_context(connect(lab, "work", RAW4, 443))
        kept = stack.enter_context(connect(lab, "home", AT_HOME, 443))
        forbidden.sendall(hello("raw.lab.example"))
        kept.sendall(hello("server.home.example"))
        assert (forbidden.recv(1), kept.recv(1)) == (b"\x16", b"\x16")

        lab.write_config(CLIENTS | {"work": {"profiles": ["github"]}})
        reload(lab)

        read_all(forbidden)  # which would time out if it lived
        kept.sendall(b"still here")
        assert read_until(kept, b"still here").endswith(b"still here")
        kept.close()
        assert spare_log.closed(name="server.home.example")["closed_by"] == "client"

    row = spare_log.closed(name="raw.lab.example")
    assert (row["verdict"], row["closed_by"]) == ("allow", "policy")


def read_to_the_end(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_what_is_still_on_its_way_is_lost_with_the_grant(spare_lab, spare_log):
    """Of a server that is quick, to a client that is slow: the kernel holds megabytes of it."""
    lab = spare_lab

    def pour(sock):
        sock.recv(65536)
        sent = 0
        with suppress(ConnectionError, TimeoutError):
            while True:
                sent += sock.send(bytes(65536))
        return sent

    with Server(lab, RAW4, 443, pour) as server, connect(lab, "work", RAW4, 443) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(hello("raw.lab.example"))
        assert slow.recv(1)
        lab.write_config(CLIENTS | {"work": {"profiles": ["github"]}})
        control.reload(lab)

        assert server.result() > 65536
        with pytest.raises(ConnectionResetError):
            read_to_the_end(slow)  # which would come to it in order
    assert spare_log.closed(name="raw.lab.example")["closed_by"] == "policy"


def test_an_open_http_connection_that_it_forbids_is_closed(spare_lab, spare_log):
    with connect(spare_lab, "work", "198.51.100.10", 80) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: github.com\r\n\r\n")
        read_until(sock, b"SNI none)\n")

        spare_lab.write_config(CLIENTS | {"work": {"profiles": ["pypi"]}})
        control.reload(spare_lab)

        assert read_all(sock) == b""
    assert spare_log.closed(name="github.com")["closed_by"] == "policy"


def test_an_open_connection_through_a_network_ends_with_the_grant(spare_lab):
    with Server(spare_lab, OPEN4, 4321, echo), connect(spare_lab, "work", OPEN4, 4321) as sock:
        sock.sendall(b"granted\n")
        assert read_until(sock, b"\n") == b"granted\n"

        spare_lab.write_profile("nets", "networks: [192.0.2.0/24]\n")
        control.reload(spare_lab)

        sock.sendall(b"still granted?\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_a_client_that_is_taken_out_loses_its_connections(spare_lab, spare_log):
    with Server(spare_lab, RAW4, 443, echo), connect(spare_lab, "work", RAW4, 443) as sock:
        sock.sendall(hello("raw.lab.example"))
        assert sock.recv(1) == b"\x16"

        spare_lab.write_config({name: part for name, part in CLIENTS.items() if name != "work"})
        control.reload(spare_lab)

        read_all(sock)
    assert spare_log.closed(name="raw.lab.example")["closed_by"] == "policy"
    assert spare_lab.curl("work", "--max-time", "2", "https://github.com/").returncode != 0
    spare_log.expect(verdict="deny", reason="unknown-client", address="10.137.0.11")


@pytest.mark.parametrize(
    ("profile", "line", "words"),
    [
        pytest.param("domains:\n  - github.com\n  - '*'\n", 3, '"*"', id="a pattern for everything"),
        pytest.param("domains:\n  - .lab.example\nnetwork: [192.0.2.0/24]\n", 3, '"network"', id="a key misspelt"),
        pytest.param("domains: [.lab.example\n", 2, "", id="no YAML"),
        pytest.param("include: [no-such-profile]\n", 1, '"no-such-profile"', id="an include that does not exist"),
    ],
)
def test_a_broken_profile_changes_nothing_and_is_told_with_its_line(spare_lab, profile, line, words):
    lab = spare_lab
    with Server(lab, RAW4, 443, echo), connect(lab, "work", RAW4, 443) as sock:
        sock.sendall(hello("raw.lab.example"))
        assert sock.recv(1) == b"\x16"
        lab.write_profile("lab", profile)

        done = lab.ask("reload")

        assert done.returncode == 1
        assert f"{lab.folder}/profiles/lab.yaml:{line}: error: " in done.stdout
        assert words in done.stdout
        assert "the last good policy stays in force" in done.stdout
        sock.sendall(b"still here")
        assert read_until(sock, b"still here").endswith(b"still here")
        assert lab.curl("work", "https://github.com/").returncode == 0
        status = control.status(lab)
        assert f"lab.yaml:{line}" in status["reload_failed"][0]
        assert "the latest reload was NOT taken" in lab.ask("status").stdout


def test_observe_mode_goes_on_and_off_by_reload(spare_lab, spare_log):
    spare_lab.write_config(CLIENTS | {"study": {"profiles": [], "mode": "observe"}})
    control.reload(spare_lab)
    assert spare_lab.curl("study", "https://github.com/").returncode == 0
    spare_log.expect(client="study", name="github.com", verdict="observe", reason="no-match")

    spare_lab.write_config(CLIENTS)
    control.reload(spare_lab)
    assert spare_lab.curl("study", "--max-time", "2", "https://github.com/").returncode == 35


def test_what_observe_mode_let_through_under_a_false_name_is_closed_when_the_name_is_granted(spare_lab, spare_log):
    """It was dialled where the client aimed, which may be anybody's address."""
    lab = spare_lab
    with Server(lab, RAW4, 443, echo), connect(lab, "watched", RAW4, 443) as sock:
        sock.sendall(hello("github.com"))
        assert sock.recv(1) == b"\x16"
        spare_log.expect(client="watched", verdict="observe", name="github.com")
        lab.write_config(CLIENTS | {"watched": {"profiles": ["github"]}})
        control.reload(lab)
        assert spare_log.closed(name="github.com")["closed_by"] == "policy"


def test_a_broken_configuration_hides_neither_the_service_nor_its_log(spare_lab):
    lab = spare_lab
    lab.write_config(CLIENTS, nonsense=True)
    done = lab.ask("reload")
    assert (done.returncode, "nonsense" in done.stdout) == (1, True)
    assert "NOT taken" in lab.ask("status").stdout
    assert lab.ask("log").returncode == 0


def test_a_setting_that_needs_a_restart_is_named_as_long_as_it_differs(spare_lab):
    lab = spare_lab
    for size, told in (("1MiB", True), ("1MiB", True), ("512MiB", False)):
        lab.write_config(CLIENTS, log={"max_size": size})
        assert ("log: max_size" in lab.ask("reload").stdout) is told
