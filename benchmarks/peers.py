"""The proxies that are measured: which program, which configuration, how it is started."""

import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

CONFIGURATIONS = Path(__file__).parent / "conf"

# libnginx-mod-stream on Debian, nginx-mod-stream on Fedora.
NGINX_STREAM_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_stream_module.so"),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One proxy. `{dir}` in an argument is the folder with the filled-in files of `conf/`.

    `port`: where port 443 is redirected to; None for a proxy that installs its own packet layer.
    """

    name: str
    arguments: tuple[str, ...]
    port: int | None

    @property
    def program(self) -> str:
        return self.arguments[0]


PEERS = (
    Peer("proxyfw", ("proxyfw", "run", "-c", "{dir}/proxyfw.yaml"), None),
    Peer("nginx", ("nginx", "-e", "stderr", "-c", "{dir}/nginx.conf"), 9001),
    Peer("haproxy", ("haproxy", "-db", "-f", "{dir}/haproxy.cfg"), 9002),
    Peer("sniproxy", ("sniproxy", "-f", "-c", "{dir}/sniproxy.conf"), 9003),
    Peer("pproxy", ("pproxy", "-l", "redir://0.0.0.0:9004"), 9004),
    Peer(
        "mitmproxy",
        (
            *("mitmdump", "-q", "--mode", "transparent", "--listen-port", "9005", "--ignore-hosts", ".*"),
            *("--set", "connection_strategy=lazy", "--set", "confdir={dir}/mitmproxy"),
        ),
        9005,
    ),
)


def find_program(peer: Peer, peer_venv: Path) -> str | None:
    """Where the peer's program is: the peers' venv, then beside this Python, then PATH and the sbin folders."""
    for folder in (peer_venv / "bin", Path(sys.executable).parent):
        if found := shutil.which(peer.program, path=str(folder)):
            return found
    return shutil.which(peer.program) or shutil.which(peer.program, path="/usr/local/sbin:/usr/sbin:/sbin")


def write_configurations(directory: Path, connections: int) -> None:
    """Fill in the files of `conf/`. `connections`: how many must be able to stand at once."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    module = next((path for path in NGINX_STREAM_MODULES if path.exists()), None)
    values = {
        "@DIR@": str(directory),
        "@CONNECTIONS@": str(connections),
        "@SOCKETS@": str(2 * connections),
        "@FILES@": str(files),
        "@NGINX_STREAM_MODULE@": f"load_module {module};" if module else "# the stream module is built in",
    }
    for source in CONFIGURATIONS.rglob("*.*"):
        text = source.read_text()
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        target = directory / source.relative_to(CONFIGURATIONS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
