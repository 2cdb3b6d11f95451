"""Real programs that are told of the explicit proxy: what is permitted works, and a refusal is an error of theirs."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile

import pytest

from lab.sockets import eventually, socket_in
from lab.test_browser import QUIET
from lab.world import EXPLICIT_PORT, RAW4
from proxyfw.demo.network import GATEWAY4

PROXY = f"{GATEWAY4}:{EXPLICIT_PORT}"
HTTP, SOCKS5, SOCKS5H = f"http://{PROXY}", f"socks5://{PROXY}", f"socks5h://{PROXY}"
FILES, EVIL, RAW = "files.lab.example", "evil.example", "raw.lab.example"
WIKIPEDIA = "en.wikipedia.org"  # granted to the client `study`, by which alone names are looked up here
SSH_PORT = 7000  # of raw.lab.example, as its profile says


@pytest.fixture(scope="module")
def lab(explicit_lab):
    """The lab's world, where clients find a proxy that they can ask."""
    return explicit_lab


@pytest.fixture(scope="module")
def www(lab, explicit_nginx):
    """The folder that files.lab.example serves."""
    return lab.folder / "nginx" / "www"


@pytest.fixture
def client(lab, tmp_path):
    """Runs a command in the client `work`, with nothing of this machine's settings but its programs."""

    def run(*command, **environment):
        kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C", **environment}
        words = [f"{name}={value}" for name, value in kept.items()]
        return lab.inside("work", "env", "-i", "-C", str(tmp_path), *words, *command, timeout=60)

    return run


def installed(program, package):
    """Where a program is; the test is skipped where it is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{package} is not installed")
    return found


def expect_refused(log, source, name=EVIL, client="work", **wanted):
    """The row of what was asked of the proxy, and refused as nothing grants it."""
    row = log.expect(client=client, verdict="deny", name=name, name_source=source, **wanted)
    assert row["reason"] == "no-match"


# curl

TUNNEL_REFUSED = r"curl: \(56\) .*403"
SOCKS5_REFUSED = r"curl: \(97\) .*SOCKS5 connection to .*\(2\)"
SOCKS4_REFUSED = r"curl: \(97\) .*SOCKS4 connection to .*\(91\)"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("options", "source", "refused"),
    [
        pytest.param(["--socks5-hostname", PROXY], "socks", SOCKS5_REFUSED, id="--socks5-hostname"),
        pytest.param(["--socks4a", PROXY], "socks", SOCKS4_REFUSED, id="--socks4a"),
        pytest.param(["-p", "-x", HTTP], "connect", TUNNEL_REFUSED, id="-p -x http"),
        pytest.param(["-x", HTTP], "connect", TUNNEL_REFUSED, id="-x http"),
        pytest.param(["-x", SOCKS5H], "socks", SOCKS5_REFUSED, id="-x socks5h"),
        pytest.param(["-x", f"socks4a://{PROXY}"], "socks", SOCKS4_REFUSED, id="-x socks4a"),
    ],
)
def test_curl(lab, log, scheme, options, source, refused):
    done = lab.curl("work", *options, f"{scheme}://github.com/")
    assert "reached github.com" in done.stdout, done.stderr

    done = lab.curl("work", *options, f"{scheme}://{EVIL}/")
    if (options[0], scheme) == ("-x", "http") and options[1] == HTTP:
        assert f"host:   {EVIL}\nreason: no-match" in done.stdout
        expect_refused(log, "host", protocol="http")
        assert lab.curl("work", "-f", *options, f"{scheme}://{EVIL}/").returncode == 22
    else:
        assert re.search(refused, done.stderr), done.stderr
        assert done.stdout == ""
        expect_refused(log, source)


@pytest.mark.parametrize(
    ("option", "refused"), [("--socks5", SOCKS5_REFUSED), ("--socks4", SOCKS4_REFUSED)], ids=["--socks5", "--socks4"]
)
def test_curl_that_looks_names_up_by_itself(lab, log, option, refused):
    """It asks for an address, which the relay has told it for a permitted name; then it must say that name."""
    done = lab.curl("study", option, PROXY, f"https://{WIKIPEDIA}/")
    assert f"reached {WIKIPEDIA}" in done.stdout, done.stderr
    row = log.expect(protocol="tls", verdict="allow", name=WIKIPEDIA)
    assert row["detail"].startswith(f"asked by socks for {row['destination']}")

    done = lab.curl("study", option, PROXY, f"https://{EVIL}/")
    assert re.search(refused, done.stderr), done.stderr
    expect_refused(log, "pin", client="study", protocol="socks")


def test_curl_that_looks_a_permitted_name_up_and_says_another(lab, log):
    elsewhere = ("--connect-to", f"{EVIL}:443:{WIKIPEDIA}:443")
    done = lab.curl("study", "--socks5", PROXY, *elsewhere, f"https://{EVIL}/")
    assert "reached" not in done.stdout
    row = log.expect(client="study", protocol="tls", verdict="deny", reason="no-match", name=EVIL)
    assert "asked by socks for " in row["detail"]


# Python's urllib

URLLIB = """\
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.reason, error.read().decode())
except urllib.error.URLError as error:
    print(error.reason)
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_urllib(lab, log, client, scheme):
    environment = {"http_proxy": HTTP, "https_proxy": HTTP, "SSL_CERT_FILE": str(lab.authority.ca)}
    assert "reached github.com" in client(sys.executable, "-c", URLLIB, f"{scheme}://github.com/", **environment).stdout

    told = client(sys.executable, "-c", URLLIB, f"{scheme}://{EVIL}/", **environment).stdout
    if scheme == "http":
        assert told.startswith("403 Forbidden proxyfw refused this connection.")
        expect_refused(log, "host")
    else:
        assert told == "Tunnel connection failed: 403 Forbidden\n"
        expect_refused(log, "connect")


# pproxy's client, which shares nothing with the proxy

PPROXY = """\
import asyncio, sys
import pproxy
async def main(proxy, host):
    reader, writer = await pproxy.Connection(proxy).tcp_connect(host, 80)
    writer.write(f"GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n".encode())
    print((await reader.read()).decode())
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(importlib.util.find_spec("pproxy") is None, reason="pproxy is not installed")
@pytest.mark.parametrize(("scheme", "source"), [("socks5", "socks"), ("http", "connect")], ids=["SOCKS5", "HTTP"])
def test_pproxy(log, client, scheme, source):
    def run(host):
        found = importlib.util.find_spec("pproxy").submodule_search_locations[0]
        return client(sys.executable, "-c", PPROXY, f"{scheme}://{PROXY}", host, PYTHONPATH=os.path.dirname(found))

    done = run("github.com")
    assert "reached github.com" in done.stdout, done.stderr
    done = run(EVIL)
    if source == "socks":
        assert (done.returncode, done.stdout) == (1, "")
    else:  # it does not look at the status, and takes what follows for the server's words
        assert "reason: no-match" in done.stdout
    expect_refused(log, source)


# git


@pytest.fixture(scope="module")
def repository(www, tmp_path_factory):
    """A repository of one commit, served as files (git's "dumb" protocol)."""
    installed("git", "git")
    source, bare = tmp_path_factory.mktemp("source"), www / "repository.git"
    quiet = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words):
        subprocess.run(["git", *words], check=True, capture_output=True, env=quiet)

    git("init", "-q", "-b", "main", str(source))
    (source / "file").write_text("committed\n")
    git("-C", str(source), "add", "file")
    identity = ("-c", "user.name=Nobody", "-c", "user.email=nobody@lab.example")
    git("-C", str(source), *identity, "commit", "-q", "-m", "A file")
    git("clone", "-q", "--bare", str(source), str(bare))
    git("-C", str(bare), "update-server-info")
    return f"https://{FILES}/{bare.name}"


@pytest.mark.parametrize(
    ("proxy", "source", "refused"),
    [(HTTP, "connect", "403"), (SOCKS5H, "socks", r"SOCKS5 connection to evil\.example\. \(2\)")],
    ids=["http", "socks5h"],
)
def test_git(lab, log, client, repository, tmp_path, proxy, source, refused):
    def git(*words):
        settings = (f"http.proxy={proxy}", f"http.sslCAInfo={lab.authority.ca}")
        return client("git", *(word for setting in settings for word in ("-c", setting)), *words)

    done = git("ls-remote", repository)
    assert done.stdout.endswith("\trefs/heads/main\n"), done.stderr
    assert git("clone", repository, "cloned").returncode == 0
    assert (tmp_path / "cloned" / "file").read_text() == "committed\n"
    log.expect(protocol="tls", verdict="allow", name=FILES)

    done = git("ls-remote", f"https://{EVIL}/repository.git")
    assert done.returncode == 128
    assert re.search(rf"fatal: unable to access 'https://evil\.example/.*{refused}", done.stderr), done.stderr
    expect_refused(log, source)


# pip


@pytest.fixture(scope="module")
def index(www):
    """A package index with one package."""
    wheel = www / "simple" / "tiny" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "SIZE = 1\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<!DOCTYPE html><a href="{wheel.name}#sha256={digest}">{wheel.name}</a>\n'
    (wheel.parent / "index.html").write_text(link)
    return "simple"


def test_pip(lab, log, client, index, tmp_path):
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "--retries", "1")
    options = ("--proxy", HTTP, "--cert", str(lab.authority.ca), "--no-deps")

    done = client(*pip, "download", *options, "-i", f"https://{FILES}/{index}/", "tiny")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny-1.0-py3-none-any.whl").exists()
    done = client(*pip, "install", *options, "-i", f"https://{FILES}/{index}/", "--target", "there", "tiny")
    assert (tmp_path / "there" / "tiny.py").read_text() == "SIZE = 1\n", done.stderr

    done = client(*pip, "download", *options, "-i", f"https://{EVIL}/{index}/", "tiny")
    assert done.returncode == 1
    assert "Tunnel connection failed: 403 Forbidden" in done.stdout + done.stderr
    expect_refused(log, "connect")


# apt


@pytest.fixture
def apt_get(lab, client, tmp_path):
    """Runs `apt-get update` of one source, with nothing of this machine's settings and lists."""
    program = installed("apt-get", "apt: this is no Debian, and it")
    for folder in ("etc/apt", "state/lists/partial", "cache/archives/partial", "log"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "state" / "status").touch()

    def update(source):
        settings = {
            "Dir::Etc": tmp_path / "etc" / "apt",
            "Dir::State": tmp_path / "state",
            "Dir::State::status": tmp_path / "state" / "status",
            "Dir::Cache": tmp_path / "cache",
            "Dir::Log": tmp_path / "log",
            "Acquire::http::Proxy": f"{HTTP}/",
            "Acquire::https::Proxy": f"{HTTP}/",
            "Acquire::https::CAInfo": lab.authority.ca,
            "Acquire::Languages": "none",
            "Acquire::Retries": "0",
            "APT::Sandbox::User": "root",
        }
        config = tmp_path / "apt.conf"
        config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        (tmp_path / "etc" / "apt" / "sources.list").write_text(f"deb [trusted=yes] {source} ./\n")
        return client(program, "update", "--error-on=any", APT_CONFIG=str(config))

    return update


@pytest.mark.parametrize(
    ("scheme", "name_source", "refused"),
    [("http", "host", "403  Forbidden"), ("https", "connect", "403 Forbidden")],
    ids=["http", "https"],
)
def test_apt(log, www, apt_get, tmp_path, scheme, name_source, refused):
    packages = www / "apt" / "Packages"
    packages.parent.mkdir(exist_ok=True)
    packages.write_text("Package: tiny\nVersion: 1.0\nArchitecture: all\nFilename: ./tiny.deb\nSize: 1\n")

    done = apt_get(f"{scheme}://{FILES}/apt")
    assert done.returncode == 0, done.stdout + done.stderr
    [lists] = (tmp_path / "state" / "lists").glob("*_Packages")
    assert lists.read_text() == packages.read_text()

    done = apt_get(f"{scheme}://{EVIL}/apt")
    assert done.returncode == 100
    assert re.search(rf"E: Failed to fetch {scheme}://evil\.example/apt/.*{refused}", done.stderr), done.stderr
    expect_refused(log, name_source)


# SSH through netcat


@pytest.fixture(scope="module")
def sshd(lab):
    """A real sshd as raw.lab.example, at the port that its profile names; a file by which it is known."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no SSH server and client are installed")
    os.makedirs("/run/sshd", exist_ok=True)  # where Debian's sshd confines itself; its package makes it at boot
    key = lab.folder / "ssh_host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    listen = ("-o", f"ListenAddress={RAW4}:{SSH_PORT}")
    process = lab.spawn(lab.network.internet, program, "-D", "-e", "-f", "/dev/null", "-h", str(key), *listen)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    known = lab.folder / "known_hosts"
    known.write_text(f"[{RAW}]:{SSH_PORT} {public}\n")

    def answers():
        with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_STREAM) as sock:
            return not sock.connect_ex((RAW4, SSH_PORT))

    assert eventually(answers)
    yield known
    lab.end(process)


@pytest.mark.parametrize(
    ("protocol", "source", "refused"),
    [("connect", "connect", '"HTTP/1.1 403 Forbidden"'), ("5", "socks", "not allowed")],
    ids=["nc -X connect", "nc -X 5"],
)
def test_ssh_with_a_proxy_command(log, client, sshd, protocol, source, refused):
    """That the server then knows nobody is what SSH says when all else is well: the host key was checked."""
    if "-X" not in subprocess.run([installed("nc", "netcat"), "-h"], capture_output=True, text=True).stderr:
        pytest.skip("nc is not the one of OpenBSD, which alone has -X")

    def ssh(port):
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={sshd}", "IdentityFile=none")
        words = [word for option in options for word in ("-o", option)]
        command = f"ProxyCommand=nc -X {protocol} -x {PROXY} %h %p"
        return client("ssh", "-F", "none", *words, "-o", command, "-p", str(port), f"nobody@{RAW}", "true")

    done = ssh(SSH_PORT)
    assert "Permission denied (publickey" in done.stderr
    log.expect(verdict="allow", name=RAW, port=SSH_PORT, name_source=source)

    done = ssh(2222)
    assert done.returncode == 255
    assert refused in done.stderr
    expect_refused(log, source, name=RAW, port=2222)


# A browser


@pytest.fixture
def chromium(client, tmp_path):
    """Opens a page by way of a proxy: what is in it then, and the errors that the browser had with that address."""
    program = shutil.which("chromium-browser") or installed("chromium", "chromium")
    net_log = tmp_path / "net.json"

    def show(proxy, url):
        ours = (f"--proxy-server={proxy}", f"--user-data-dir={tmp_path / 'user'}", f"--log-net-log={net_log}")
        shown = client(program, *QUIET, *ours, "--ignore-certificate-errors", "--dump-dom", url).stdout
        told = json.loads(net_log.read_text())
        words = {number: word for word, number in told["constants"]["netError"].items()}
        events = [(event["source"]["id"], event.get("params", {})) for event in told["events"]]
        of_page = {source for source, parameters in events if parameters.get("url") == url}
        errors = {parameters.get("net_error", 0) for source, parameters in events if source in of_page}
        return shown, {words[number] for number in errors if number}

    return show


@pytest.mark.parametrize(
    ("proxy", "source", "refused"),
    [(HTTP, "connect", "ERR_TUNNEL_CONNECTION_FAILED"), (SOCKS5, "socks", "ERR_SOCKS_CONNECTION_FAILED")],
    ids=["http", "socks5"],
)
def test_chromium(log, www, chromium, proxy, source, refused):
    (www / "page.html").write_text(
        '<!doctype html><title>page</title><body><img src="/other.png"><script>'
        'addEventListener("load", () => document.body.append("all is loaded"))</script>'
    )
    shown, _ = chromium(proxy, f"https://{FILES}/page.html")
    assert "</script>all is loaded" in shown
    log.expect(protocol="tls", verdict="allow", name=FILES)

    assert refused in chromium(proxy, f"https://{EVIL}/")[1]
    expect_refused(log, source)


def test_chromium_shows_the_page_of_a_refusal_in_plain_http(log, chromium):
    shown, _ = chromium(HTTP, f"http://{EVIL}/")
    assert f"host:   {EVIL}\nreason: no-match" in shown
    expect_refused(log, "host", protocol="http")
