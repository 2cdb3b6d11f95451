"""Tells when another process changes the nftables ruleset: notices over netlink (linux/netfilter/nf_tables.h).

Of each transaction the kernel tells who made it. What packets do to sets, and elements that run out, are none.
"""

import ctypes
import errno
import os
import socket
import struct

from proxyfw.core.netlink import attributes, messages

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7
_SO_ATTACH_FILTER = 26
_NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_GEN_PROC_PID = 2
_BUFFER = 1 << 20

# A notice of each object in a transaction comes before the one of the transaction: a large one of our own would fill
# any buffer. So the socket takes only the last (linux/filter.h; it reads numbers in network order).
_ONLY_NEWGEN = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x28, 0, 0, 4),  # load the 16 bits at 4: the message's type
    *(0x15, 0, 1, socket.htons(_NEWGEN)),  # not this one: pass over one instruction
    *(0x06, 0, 0, 0xFFFF),  # take it
    *(0x06, 0, 0, 0),  # take nothing
)


class NftWatch:
    """Watches the network namespace that it is started in, and has to run in the first process namespace: elsewhere it
    cannot tell its own changes from others.
    """

    def start(self) -> None:
        """Begins to watch. Needs CAP_NET_ADMIN. Raises OSError."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            program = ctypes.create_string_buffer(_ONLY_NEWGEN)
            self._sock.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("@HP", len(_ONLY_NEWGEN) // 8, ctypes.addressof(program)),
            )
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for. It wakes for our own changes too."""
        return self._sock.fileno()

    def stop(self) -> None:
        """Closes the socket."""
        self._sock.close()

    def read(self, limit: int = 256) -> bool:
        """Whether the ruleset was changed by another process since the last call; at most so many notices are read.

        It may also say so where that cannot be told: notices were lost, or our thread that made the change has ended.
        """
        changed = False
        for _ in range(limit):
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            changed = any(kind == _NEWGEN and not _own(body) for kind, body in messages(data)) or changed
        return changed


def _own(body: bytes) -> bool:
    """Whether one of our threads did it: the kernel's process number is that of the thread."""
    number = int.from_bytes(dict(attributes(body, 4)).get(_GEN_PROC_PID, b""))
    return os.path.exists(f"/proc/self/task/{number}")
