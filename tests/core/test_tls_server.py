"""TLS beyond the first hello: what a server says first, the second hello it may ask for, and the alerts we send."""

import shutil
import ssl
import subprocess
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.sniffed import Named
from proxyfw.core.tls import ClientHello, ServerFirst, alert, server_first
from proxyfw.core.verdict import Reason


def handshake(body: bytes, kind: int) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3) + body


def record(body: bytes) -> bytes:
    return b"\x16\x03\x03" + len(body).to_bytes(2) + body


@pytest.fixture(scope="module")
def retry(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What a real server says that wants another key share, and the real client's answer to it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder: Path = tmp_path_factory.mktemp("retry")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=github.com", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate, key)
    server_context.set_ecdh_curve("secp384r1")  # the client's key share is of another group
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(to_client, to_server, server_hostname="github.com")
    server_in = ssl.MemoryBIO()
    server = server_context.wrap_bio(server_in, to_client, server_side=True)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    server_in.write(to_server.read())
    with suppress(ssl.SSLWantReadError):
        server.do_handshake()
    answer = to_client.read()
    to_client.write(answer)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return answer, to_server.read()


def test_a_real_hello_retry_request_is_known(retry: tuple[bytes, bytes]) -> None:
    answer, _ = retry
    assert server_first(answer) is ServerFirst.RETRY
    states = [server_first(answer[:end]) for end in range(len(answer) + 1)]
    assert states[0] is ServerFirst.NEED_MORE
    # It is known when its random is whole, and not before.
    assert [later for earlier, later in pairwise(states) if earlier is not later] == [ServerFirst.RETRY]
    assert states.index(ServerFirst.RETRY) == 5 + 4 + 2 + 32


def test_the_second_hello_of_a_real_client_is_read(retry: tuple[bytes, bytes]) -> None:
    _, second = retry
    assert second.startswith(bytes.fromhex("140303000101"))
    answers = []
    for pieces in ([second], [second + b"\x17\x03\x03"], [bytes([octet]) for octet in second]):
        hello = ClientHello(second=True)
        answers.append(([hello.feed(piece) for piece in pieces][-1], hello.consumed))
    assert answers == [(Named(Hostname("github.com")), len(second))] * 3


RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(b"", ServerFirst.NEED_MORE, id="nothing"),
        pytest.param(b"\x16", ServerFirst.NEED_MORE, id="one byte of a handshake record"),
        pytest.param(record(handshake(b"\x03\x03", 2)), ServerFirst.NEED_MORE, id="a ServerHello up to its version"),
        pytest.param(record(handshake(b"\x03\x03" + RETRY_RANDOM[:31], 2)), ServerFirst.NEED_MORE, id="31 bytes of it"),
        pytest.param(record(handshake(b"\x03\x03" + RETRY_RANDOM, 2)), ServerFirst.RETRY, id="the whole random"),
        pytest.param(record(handshake(b"\x03\x03" + bytes(32), 2)), ServerFirst.OTHER, id="an ordinary ServerHello"),
        pytest.param(
            b"".join(record(bytes([octet])) for octet in handshake(b"\x03\x03" + RETRY_RANDOM, 2)),
            ServerFirst.RETRY,
            id="a HelloRetryRequest in records of one byte",
        ),
        pytest.param(
            record(handshake(b"\x03\x03" + RETRY_RANDOM, 2)[:20]) + b"\x17\x03\x03\0\1x",
            ServerFirst.OTHER,
            id="half of one, and another record",
        ),
        pytest.param(record(b"") * 4000, ServerFirst.OTHER, id="empty records without end"),
        pytest.param(
            record(handshake(b"\x03\x03" + RETRY_RANDOM[:31] + b"\0", 2)), ServerFirst.OTHER, id="all but its last byte"
        ),
        pytest.param(record(handshake(b"\x03\x03" + RETRY_RANDOM, 1)), ServerFirst.OTHER, id="another message"),
        pytest.param(b"\x15\x03\x03\0\x02\x02\x28", ServerFirst.OTHER, id="an alert"),
        pytest.param(b"SSH-2.0-", ServerFirst.OTHER, id="SSH"),
    ],
)
def test_what_a_server_says_first(data: bytes, answer: ServerFirst) -> None:
    assert server_first(data) is answer


@pytest.mark.parametrize(
    ("reason", "description"),
    [
        pytest.param(Reason.NO_MATCH, 49, id="no grant: access_denied"),
        pytest.param(Reason.PRIVATE_ADDRESS, 49, id="private address: access_denied"),
        pytest.param(Reason.MALFORMED, 50, id="malformed: decode_error"),
        pytest.param(Reason.AMBIGUOUS, 50, id="ambiguous: decode_error"),
        pytest.param(Reason.OVERSIZED, 50, id="oversized: decode_error"),
        pytest.param(Reason.UNRESOLVABLE, 80, id="unresolvable: internal_error"),
        pytest.param(Reason.UNREACHABLE, 80, id="unreachable: internal_error"),
        pytest.param(Reason.LIMIT, 80, id="limit: internal_error"),
    ],
)
def test_a_refused_client_gets_a_fatal_alert(reason: Reason, description: int) -> None:
    assert alert(reason) == b"\x15\x03\x03\x00\x02\x02" + bytes([description])


def test_a_real_client_understands_the_alert() -> None:
    incoming = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="github.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert(Reason.NO_MATCH))
    with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
        client.do_handshake()


@given(st.binary(max_size=100))
def test_any_first_bytes_of_a_server_have_an_answer_that_stays(data: bytes) -> None:
    answer = server_first(data)
    if answer is not ServerFirst.NEED_MORE:
        assert server_first(data + b"more") is answer
