"""What this process may do: capabilities(7), and giving up all of it before something foreign is read.

A process that `give_up` returned in is nobody's, where it was root's, has no capability and gets none again by what it
starts, writes no file, and is bounded in memory and time. Where it stays the user of the processes outside, Landlock
(landlock(7)) keeps it from deleting their files and, from Linux 6.12 on, from sending them signals; not from all else
that one user's processes may do to each other: changing modes and limits, connecting to sockets.
"""

import ctypes
import os
import pwd
import resource
import signal
import struct
from pathlib import Path

_STATUS = Path("/proc/self/status")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_NET_BIND_SERVICE, _NET_ADMIN = 10, 12
_NOBODY = 65534  # where no user has that name

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 38, 47  # linux/prctl.h
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h: version 3, two words for each set

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the numbers are the same on every architecture
_LANDLOCK_VERSION = 1  # the flag of a question: what the kernel has
_BENEATH = 1  # the type of a rule
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14  # linux/landlock.h, LANDLOCK_ACCESS_FS_
_CHANGES = (
    (1, _WRITE_FILE | 0b1_1111_1111_0000),  # and REMOVE_ and MAKE_ of every kind
    (2, 1 << 13),  # REFER: from one folder to another
    (3, _TRUNCATE),
)
"""What changes a file or folder, by the version of Landlock that can forbid it."""
_SCOPE_VERSION, _SCOPES = 6, 0b11  # LANDLOCK_SCOPE_: abstract Unix sockets, signals

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_LIBC.syscall.restype = ctypes.c_long


class RightsError(Exception):
    """Something could not be given up; the message says what."""


def may_administer_network() -> bool:
    """Whether it may change rules and routes, and take the DNS port: as root, or with these two capabilities alone."""
    return all(_capabilities("CapEff") >> bit & 1 for bit in (_NET_BIND_SERVICE, _NET_ADMIN))


def is_root() -> bool:
    """Whether it is root, or may become it again."""
    return 0 in os.getresuid()


def give_up_capabilities() -> bool:
    """Whether it has none now. False: a filter of system calls forbids it (capset is in systemd's `@privileged`). They
    are gone then after the next exec, unless it is root. Raises RightsError.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _LIBC.capset(header, nothing)  # its failure shows below
    # Inheritable ones are left out: they become others only by a file's, and no_new_privs ignores those.
    return _capabilities("CapPrm", "CapEff", "CapAmb") == 0


def give_up(memory: int, seconds: int) -> None:
    """All that the module says, for good. `memory`: bytes of address space. `seconds`: of the processor. To be called
    while there is one thread. The process dies with the thread that started it. Raises RightsError.
    """
    _be_the_first_to_die_for_memory()
    if is_root():
        _become_nobody()
    if not give_up_capabilities():
        raise RightsError("some capabilities cannot be given up")
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of the user forgets it
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)  # SIGXCPU, which tells why, and then SIGKILL
    _limit(resource.RLIMIT_AS, memory)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _confine()


def _be_the_first_to_die_for_memory() -> None:
    try:
        _OOM_SCORE.write_text("1000")
    except OSError:
        return  # a kindness to the others, not a right


def _become_nobody() -> None:
    try:
        entry = pwd.getpwnam("nobody")
        user, group = entry.pw_uid or _NOBODY, entry.pw_gid or _NOBODY
    except KeyError:
        user = group = _NOBODY
    try:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        raise RightsError(f"this root cannot become another user: {error.strerror}") from None


def _capabilities(*sets: str) -> int:
    """The capabilities in any of these sets, as proc(5) names them, one bit each."""
    found = 0
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in sets:
            found |= int(value, 16)
    return found


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Never raises a limit."""
    before = resource.getrlimit(which)[1]
    most = soft if hard is None else hard
    if before != resource.RLIM_INFINITY:
        most = min(most, before)
    try:
        resource.setrlimit(which, (min(soft, most), most))
    except (OSError, ValueError) as error:
        raise RightsError(f"a limit cannot be set: {error}") from None


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        raise RightsError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _confine() -> None:
    """Landlock, as far as this kernel has it. No file but /dev/null can be written from then on."""
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION))
    if version < 1:
        return
    forbidden = sum(bits for since, bits in _CHANGES if version >= since)
    scopes = _SCOPES if version >= _SCOPE_VERSION else 0
    attributes = (ctypes.c_uint64 * 3)(forbidden, 0, scopes)  # files, network, scopes
    size = ctypes.c_size_t(24 if scopes else 8)
    ruleset = _landlock(_LANDLOCK_CREATE, attributes, size, ctypes.c_uint32(0))
    null = os.open(os.devnull, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = forbidden & (_WRITE_FILE | _TRUNCATE)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, null))
        _landlock(_LANDLOCK_ADD, ruleset, ctypes.c_int(_BENEATH), rule, ctypes.c_uint32(0))
        _landlock(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0))
    finally:
        os.close(null)
        os.close(ruleset)


def _landlock(number: int, *arguments: object) -> int:
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        raise RightsError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
