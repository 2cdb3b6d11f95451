"""Packets made by hand: for pings, and for sources and destinations that no socket would take."""

import socket
import struct
import subprocess
from ipaddress import ip_address

from lab.sockets import socket_in
from proxyfw.demo.lab import Lab

_ECHO = {4: (8, 0), 6: (128, 129)}  # types of an echo request and of its reply, RFC 792 and RFC 4443
_PROHIBITED = {4: (3, 13), 6: (1, 1)}  # type and code of "administratively prohibited"


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(lab: Lab, client: str, address: str) -> str:
    """What became of one ping: "reply" or "prohibited". Raises TimeoutError when nothing comes back."""
    version = ip_address(address).version
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    request, reply = _ECHO[version]
    packet = struct.pack("!BBHHH", request, 0, 0, 7, 1) + b"lab ping"
    if version == 4:  # the kernel does it for ICMPv6
        packet = packet[:2] + _checksum(packet).to_bytes(2) + packet[4:]
    with socket_in(lab.network.namespace(client), family, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(packet, (address, 0))
        while True:
            data = sock.recv(2048)
            answer = data[20:] if version == 4 else data
            if answer[0] == reply and packet[8:] in answer:
                return "reply"
            if (answer[0], answer[1]) == _PROHIBITED[version]:
                return "prohibited"


def udp_packet(source: str, destination: str, port: int, data: bytes = b"lab") -> bytes:
    """An IPv4 packet with a UDP datagram in it (its checksum left out, as RFC 768 allows)."""
    datagram = struct.pack("!HHHH", 40000, port, 8 + len(data), 0) + data
    addresses = ip_address(source).packed + ip_address(destination).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, socket.IPPROTO_UDP, 0)
    header = header[:10] + _checksum(header + addresses).to_bytes(2)
    return header + addresses + datagram


def put_on_the_wire(lab: Lab, client: str, *packets: bytes) -> None:
    """Sends IPv4 packets out of a client's interface as they are, past the client's own routing."""
    qube = lab.network.clients[client]
    show = ["ip", "netns", "exec", lab.network.netvm, "cat", f"/sys/class/net/{qube.vif}/address"]
    told = subprocess.run(show, capture_output=True, text=True, check=True)
    to = bytes.fromhex(told.stdout.strip().replace(":", ""))
    with socket_in(lab.network.namespace(client), socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
        for packet in packets:
            sock.sendto(packet, ("eth0", 0x0800, 0, 0, to))
