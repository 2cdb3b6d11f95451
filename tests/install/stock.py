"""The parts of a stock Qubes OS qube that an installation meets, in small: units of the same names, in the same order,
doing what the real ones do (vm-systemd, network and qubesagent of qubes-core-agent-linux 4.3).
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import nftables

_ONESHOT = "[Service]\nType=oneshot\nRemainAfterExit=yes\n"

UNITS = {
    "qubes-db.service": """\
[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/sbin/qubesdb-daemon
Type=notify
Group=qubes
[Install]
WantedBy=sysinit.target
""",
    "qubes-sysinit.service": f"""\
[Unit]
DefaultDependencies=no
Before=sysinit.target
After=local-fs.target qubes-db.service
Requires=qubes-db.service
{_ONESHOT}ExecStart=/usr/lib/qubes/init/qubes-sysinit.sh
[Install]
WantedBy=sysinit.target
""",
    "qubes-bind-dirs.service": f"""\
[Unit]
DefaultDependencies=no
After=qubes-sysinit.service local-fs.target
Before=sysinit.target systemd-tmpfiles-setup.service
{_ONESHOT}ExecStart=/usr/lib/qubes/init/bind-dirs.sh
[Install]
WantedBy=multi-user.target
""",
    "qubes-iptables.service": f"""\
[Unit]
Before=network-pre.target
{_ONESHOT}ExecStart=/usr/sbin/nft -f /etc/qubes/qubes.nft
[Install]
WantedBy=multi-user.target
""",
    "qubes-firewall.service": """\
[Unit]
ConditionPathExists=/var/run/qubes-service/qubes-firewall
After=qubes-iptables.service
Before=qubes-network.service
[Service]
Type=notify
ExecStart=/usr/bin/qubes-firewall
Restart=on-failure
RestartSec=5s
[Install]
WantedBy=multi-user.target
""",
    "qubes-network.service": f"""\
[Unit]
ConditionPathExists=/var/run/qubes-service/qubes-network
Before=network.target
After=network-pre.target qubes-iptables.service
{_ONESHOT}ExecStart=/usr/lib/qubes/init/network-proxy-setup.sh
[Install]
WantedBy=multi-user.target
""",
    "qubes-misc-post.service": f"""\
[Unit]
After=network-pre.target qubes-bind-dirs.service qubes-network.service qubes-firewall.service
{_ONESHOT}ExecStart=/usr/lib/qubes/init/misc-post.sh
[Install]
WantedBy=multi-user.target
""",
}

PROGRAMS = {
    "usr/sbin/qubesdb-daemon": """\
#!/usr/bin/python3
import os, signal, socket
from qubesdb.daemon import Daemon
from qubesdb.dom0 import Dom0

os.makedirs("/run/qubes", 0o775, exist_ok=True)
os.umask(0o111)
with Daemon("/run/qubes/qubesdb.sock"):
    dom0 = Dom0("/run/qubes/qubesdb.sock")
    with open("/etc/qubesdb/name") as file:
        dom0.netvm(file.read())
    dom0.dns("10.139.1.1", "10.139.1.2")
    dom0.firewall("10.137.0.11", [], "accept")  # what a qube has whose firewall tab was never touched
    dom0.connected(["10.137.0.11"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    signal.pause()
""",
    "usr/bin/qubesdb-read": """\
#!/bin/sh
cat "/etc/qubesdb$1" 2>/dev/null || exit 2
""",
    "usr/lib/qubes/init/qubes-sysinit.sh": """\
#!/bin/sh
mkdir -p /run/qubes-service
for name in $(cat /etc/qubesdb/services); do touch "/run/qubes-service/$name"; done
""",
    "usr/lib/qubes/init/bind-dirs.sh": """\
#!/bin/bash
mkdir -p /rw/config /rw/usrlocal/bin /rw/bind-dirs
mount --bind /rw/usrlocal /usr/local
[ "$(qubesdb-read /qubes-vm-persistence)" = rw-only ] || exit 0
binds=()
shopt -s nullglob
for file in /usr/lib/qubes-bind-dirs.d/*.conf /rw/config/qubes-bind-dirs.d/*.conf; do . "$file"; done
for folder in "${binds[@]}"; do
    if [ ! -d "/rw/bind-dirs$folder" ]; then
        [ -d "$folder" ] || continue
        mkdir -p "/rw/bind-dirs${folder%/*}"
        cp -a "$folder" "/rw/bind-dirs$folder"
    fi
    mkdir -p "$folder"
    mount --bind "/rw/bind-dirs$folder" "$folder"
done
""",
    "usr/lib/qubes/init/network-proxy-setup.sh": """\
#!/bin/sh
if nft list chain inet proxyfw forward >/dev/null 2>&1; then
    echo "forwarding begins; proxyfw's table is in force"
else
    echo "forwarding begins; proxyfw has no table"
fi
echo 1 > /proc/sys/net/ipv4/ip_forward
""",
    "usr/lib/qubes/init/misc-post.sh": """\
#!/bin/sh
for rc in /rw/config/rc.local.d/*.rc /rw/config/rc.local; do
    [ -f "$rc" ] && [ -x "$rc" ] && "$rc"
done
true
""",
    "usr/bin/qubes-firewall": """\
#!/usr/bin/python3
import os, signal, socket, subprocess

TABLE = '''
table {family} qubes-firewall {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname != "vif*" accept
        accept
    }}
}}
'''

def nft(text):
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
nft("".join(TABLE.format(family=family) for family in ("ip", "ip6")))
for folder in ("/etc/qubes/qubes-firewall.d", "/rw/config/qubes-firewall.d"):
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if os.access(f"{folder}/{name}", os.X_OK):
            subprocess.call([f"{folder}/{name}"])
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.sigwait({signal.SIGTERM})
nft("delete table ip qubes-firewall\\ndelete table ip6 qubes-firewall\\n")
""",
}

NFT = """\
table ip qubes {
    chain input {
        type filter hook input priority filter; policy drop;
        jump custom-input
        ct state related,established accept
        iifgroup 2 meta l4proto icmp accept
        iif lo accept
        iifgroup 2 counter reject with icmp type host-prohibited
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        jump custom-forward
        ct state related,established accept
        oifgroup 2 counter drop
    }
    chain custom-input {}
    chain custom-forward {}
}
"""

# What a test machine has no use for, and what would reach for the host's kernel.
_MASKED = (
    "dbus.service",
    "dbus.socket",
    "dbus-broker.service",
    "systemd-logind.service",
    "getty.target",
    "console-getty.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-fs-fuse-connections.mount",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-timesyncd.service",
    "systemd-resolved.service",
    "systemd-networkd.service",
    "systemd-firstboot.service",
)

NETVM = ("qubes-network", "qubes-firewall")
"""The services that are on in a netvm."""


def build(layer: Path, source: Path, wheels: Path, qubesdb: Path) -> None:
    """A template as it comes: a layer of files over this system's, with a checkout in its user's home.

    `wheels`: the Python packages that an installation needs, in place of the package index. `qubesdb`: the double of
    Qubes' Python module.
    """
    units = layer / "etc/systemd/system"
    units.mkdir(parents=True)
    netns = layer / "etc/netns"
    netns.mkdir()
    # What this system has enabled is not the machine's, nor what its namespaces are told, which comes and goes.
    for folder in (units, netns):
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    for name, text in UNITS.items():
        _write(layer / "usr/lib/systemd/system" / name, text)
        wanted = units / f"{'sysinit' if 'WantedBy=sysinit' in text else 'multi-user'}.target.wants" / name
        wanted.parent.mkdir(exist_ok=True)
        wanted.symlink_to(f"/usr/lib/systemd/system/{name}")
    for name, text in PROGRAMS.items():
        _write(layer / name, text, 0o755)
    modules = Path(nftables.__file__).parents[1].relative_to("/")
    shutil.copytree(qubesdb, layer / modules / "qubesdb", ignore=shutil.ignore_patterns("__pycache__"))
    _write(layer / "usr/share/qubes/marker-vm", "4.3\n")
    _write(layer / "etc/qubes/qubes.nft", NFT)
    _write(layer / "etc/group", Path("/etc/group").read_text() + "qubes:x:98:\n")
    _write(layer / "etc/resolv.conf", "nameserver 10.139.1.1\n")
    copy_source(source, layer / "home/user/proxyfw")
    shutil.copytree(wheels, layer / "home/user/wheels")


def settings(upper: Path, values: Mapping[str, str], services: tuple[str, ...] = ()) -> None:
    """What a machine's QubesDB says."""
    for path, value in {**values, "/services": " ".join(services)}.items():
        _write(upper / f"etc/qubesdb{path}", value)


def copy_source(source: Path, target: Path) -> None:
    """A checkout, without what grows in it."""
    target.mkdir(parents=True)
    for name in ("setup.sh", "pyproject.toml", "README.md", "requirements.lock"):
        shutil.copy2(source / name, target / name)
    for name in ("proxyfw", "profiles", "iptables", "qubes"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
