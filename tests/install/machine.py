"""A machine for the tests: this system's files, systemd as process 1, and namespaces of its own for all the rest.

Its files are an overlay: the layers given, over this system's. What it writes goes to a folder in memory, and can be a
layer of the next machine. So a qube is installed in, shut down, and booted again with only what lasts of a qube.
"""

import json
import os
import pty
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PATIENCE = 60.0  # seconds for a boot, or for a command

# $1: lower layers; $2: the machine's folder; $3: its console; $4: its control group, made here.
_PREPARE = r"""
set -eu
mkdir -p "$2/cgroup"
mount -t cgroup2 cgroup2 "$2/cgroup"
mkdir -p "$2/cgroup/$4"
echo $$ > "$2/cgroup/$4/cgroup.procs"
export BOOT
exec unshare --cgroup --mount --propagation private --pid --net --uts --ipc --fork --kill-child \
    sh -c "$BOOT" boot "$1" "$2" "$3"
"""

_BOOT = r"""
set -eu
umount "$2/cgroup"
R=$2/root
mkdir -p "$R" "$2/upper" "$2/work"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$R"
mount -t tmpfs tmpfs "$R/dev"
for node in null zero full random urandom tty; do
    : > "$R/dev/$node"
    mount --bind "/dev/$node" "$R/dev/$node"
done
: > "$R/dev/console"
mount --bind "$3" "$R/dev/console"
mkdir "$R/dev/pts" "$R/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
ln -s /proc/self/fd "$R/dev/fd"
mount -t proc proc "$R/proc"
# The kernel's settings are the host's; those of the network are the machine's own.
mount --bind "$R/proc/sys" "$R/proc/sys"
mount --bind "$R/proc/sys/net" "$R/proc/sys/net"
mount -o remount,bind,ro "$R/proc/sys"
mount -t sysfs -o ro sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs tmpfs "$R/tmp"
hostname netvm
mkdir -p "$R/run/host-root"
cd "$R"
pivot_root . run/host-root
umount -l run/host-root
exec chroot . env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb /lib/systemd/systemd --show-status=true
"""


class MachineError(Exception):
    """No machine can be booted here; the message says why."""


class Memory:
    """A file system in memory that only the machines see, and whoever knows their `outside` path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mount = 'mount -t tmpfs -o mode=755 tmpfs "$0" && echo mounted && exec cat'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._keeper = subprocess.Popen(command, text=True, **pipes)
        if self._keeper.stdout.readline() != "mounted\n":
            raise MachineError(f"no file system for it: {self._keeper.communicate()[1].strip()}")

    @property
    def pid(self) -> int:
        """The process that keeps it mounted."""
        return self._keeper.pid

    def outside(self, name: str) -> Path:
        """A folder of it, as this process reaches it."""
        return Path(f"/proc/{self.pid}/root{self.folder}/{name}")

    def close(self) -> None:
        """Lets go of it; it is gone with the last machine."""
        self._keeper.communicate()


class Machine:
    """Booted by `start`, switched off by `stop`. `layers`: names of folders of the memory, the uppermost first."""

    def __init__(self, memory: Memory, name: str, layers: Sequence[str]) -> None:
        self._memory, self.name = memory, name
        self._layers = layers
        self._console: list[bytes] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self.upper.mkdir(parents=True)

    @property
    def upper(self) -> Path:
        """What it has written, and is given before it starts."""
        return self._memory.outside(f"{self.name}/upper")

    @property
    def console(self) -> str:
        """What was shown on its console so far."""
        return b"".join(self._console).decode("utf-8", "replace")

    def start(self) -> None:
        """Boots, and waits until all has been started. Raises MachineError."""
        master, slave = pty.openpty()
        reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        reader.start()
        lower = ":".join([*(f"{self._memory.folder}/{layer}" for layer in self._layers), "/"])
        folder = f"{self._memory.folder}/{self.name}"
        self._group = f"proxyfw-test-{os.getpid()}-{self.name}"
        command = [
            "nsenter",
            f"--mount=/proc/{self._memory.pid}/ns/mnt",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ]
        command += ["sh", "-c", _PREPARE, "prepare", lower, folder, os.ttyname(slave), self._group]
        errors = self._memory.outside(f"{self.name}/errors")
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, "BOOT": _BOOT}
            )
        try:
            self._await_boot()
        except MachineError as error:
            self.stop()
            said = errors.read_text("utf-8", "replace").strip()
            raise MachineError(f"{error} {said} {self.console[-2000:]}") from None
        finally:
            os.close(slave)

    def stop(self) -> None:
        """Switches off, as one pulls the plug."""
        if self._process is not None:
            self._process.kill()  # and by --kill-child the machine
            self._process.wait()
            self._process = None
            _remove_group(self._memory, self.name, self._group)

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as root."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", *command],
            capture_output=True, text=True, check=False, timeout=_PATIENCE, env=_ENVIRONMENT, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.console}"
        return done

    def ok(self, *command: str) -> bool:
        """Whether a command inside succeeds."""
        return self.run(*command, check=False).returncode == 0

    def journal(self, *units: str) -> list[str]:
        """The messages in the journal, oldest first, of these units or of all."""
        chosen = [word for unit in units for word in ("-u", unit)]
        lines = self.run("journalctl", "--no-pager", "-b", "-o", "json", *chosen).stdout.splitlines()
        return [str(json.loads(line).get("MESSAGE", "")) for line in lines]

    def eventually(self, look: Callable[[], Any], patience: float = 20.0) -> Any:
        """What `look` answers, once it is true; else its last answer."""
        end = time.monotonic() + patience
        while not (found := look()) and time.monotonic() < end:
            time.sleep(0.03)
        return found

    def _await_boot(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise MachineError("process 1 has ended:")
            if self._init or self._find_init():
                with suppress(subprocess.TimeoutExpired):
                    state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
                    if state in ("running", "degraded"):
                        return
            time.sleep(0.01)  # it cannot be asked yet
        raise MachineError("it does not finish booting:")

    def _find_init(self) -> bool:
        """Whether systemd runs. `unshare` forks it, after the programs before have become one another."""
        assert self._process is not None
        with suppress(OSError, ValueError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
                self._init = int(children[0])
        return self._init != 0

    def _read(self, master: int) -> None:
        with suppress(OSError):  # the last one to have it open is gone
            while piece := os.read(master, 65536):
                self._console.append(piece)
        os.close(master)


_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


def _remove_group(memory: Memory, name: str, group: str) -> None:
    """Takes the control groups away that a machine has left."""
    folder = f"{memory.folder}/{name}/cgroup"
    script = 'mount -t cgroup2 cgroup2 "$0" && find "$0/$1" -depth -type d -exec rmdir {} +'
    enter = ["nsenter", f"--mount=/proc/{memory.pid}/ns/mnt", "unshare", "--mount"]
    for _ in range(250):
        done = subprocess.run([*enter, "sh", "-c", script, folder, group], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.02)  # its processes are still being ended


def copy(source: Path, target: Path) -> None:
    """A folder with all of its owners, modes and links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def reason_not_to() -> str:
    """Why no machine can be tried here; empty where one can."""
    if os.geteuid() != 0:
        return "a machine is booted in namespaces of its own: run it as root"
    for program in ("unshare", "nsenter", "pivot_root", "nft", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    return ""
