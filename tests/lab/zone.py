"""A resolver of the lab's internet that a test can rewrite, silence and ask what it was asked."""

import socket
import threading
from contextlib import suppress

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from lab.sockets import family_of, socket_in
from proxyfw.demo.lab import Lab

_SOA = "ns.zone.example. root.zone.example. 1 3600 900 604800 5"
_PATIENCE = 0.2  # seconds between two looks at whether to stop


class Zone:
    """Records by name: lines such as "60 A 192.0.2.1", in the order to answer; `asked`: every question that came.

    Names with "*." in front answer for all below. A CNAME is followed inside the zone. `silent`: nothing is answered.
    """

    def __init__(self, lab: Lab, address: str, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked: list[tuple[str, str]] = []
        self.wires: list[bytes] = []
        self.silent = False
        self.turn = False
        """Whether each answer begins with the next address (round robin)."""
        self._turns = 0
        self._stopping = threading.Event()
        family = family_of(address)
        self._udp = socket_in(lab.network.internet, family, socket.SOCK_DGRAM)
        self._udp.bind((address, 53))
        self._tcp = socket_in(lab.network.internet, family, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, 53))
        self._tcp.listen()
        self._threads = [threading.Thread(target=serve) for serve in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> "Zone":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for sock in (self._udp, self._tcp):  # which wakes whoever waits for them
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def names(self) -> set[str]:
        """The names asked so far."""
        return {name for name, _ in self.asked}

    def _serve_udp(self) -> None:
        self._udp.settimeout(_PATIENCE)
        while not self._stopping.is_set():
            with suppress(TimeoutError, BrokenPipeError):  # nobody asks; or it is being ended just now
                data, sender = self._udp.recvfrom(4096)
                reply = self._reply(data) if sender else None
                if reply is not None:
                    limit = max(512, dns.message.from_wire(data).payload)
                    self._udp.sendto(reply.to_wire(max_size=limit, prefer_truncation=True), sender)

    def _serve_tcp(self) -> None:
        self._tcp.settimeout(_PATIENCE)
        while not self._stopping.is_set():
            with suppress(OSError):
                sock = self._tcp.accept()[0]
                with sock:
                    sock.settimeout(5)
                    length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL))
                    reply = self._reply(sock.recv(length, socket.MSG_WAITALL))
                    if reply is not None:
                        wire = reply.to_wire(max_size=65535)
                        sock.sendall(len(wire).to_bytes(2) + wire)

    def _reply(self, data: bytes) -> dns.message.Message | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        self.wires.append(data)
        if self.silent:
            return None
        reply = dns.message.make_response(query)
        while True:
            lines = self._lines(name)
            owner = question.name if not reply.answer else dns.name.from_text(name)
            chosen = [line for line in lines or () if line.split()[1] in (kind, "CNAME")]
            if self.turn:
                self._turns += 1
                chosen = [*chosen[self._turns % len(chosen) :], *chosen[: self._turns % len(chosen)]] if chosen else []
            if lines is None:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            if not chosen:
                reply.authority.append(dns.rrset.from_text("zone.example.", 5, "IN", "SOA", _SOA))
                return reply
            ttl, rdtype, _ = chosen[0].split(None, 2)
            data_lines = [line.split(None, 2)[2] for line in chosen]
            reply.answer.append(dns.rrset.from_text_list(owner, int(ttl), "IN", rdtype, data_lines))
            if rdtype == kind or rdtype != "CNAME":
                return reply
            name = data_lines[0].rstrip(".")

    def _lines(self, name: str) -> list[str] | None:
        if name in self.records:
            return self.records[name]
        below = [f"*.{name.split('.', depth)[-1]}" for depth in range(1, name.count(".") + 1)]
        return next((self.records[star] for star in below if star in self.records), None)
