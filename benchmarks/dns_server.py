"""The benchmark's resolver: one name, or with *.NAME all names below it, over UDP.

Usage: python dns_server.py LISTEN NAME ADDRESS...
"""

import socket
import sys
from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TTL = 300  # seconds


def answer(query: dns.message.Message, name: dns.name.Name, addresses: Sequence[str]) -> dns.message.Message:
    """The addresses for `name`; no data for its other types; NXDOMAIN for any other name."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    question = query.question[0]
    records = [address for address in addresses if question.rdtype == _type(address)]
    if not (question.name == name or (name.is_wild() and question.name.is_subdomain(name.parent()))):
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif records:
        response.answer.append(
            dns.rrset.from_text(question.name, TTL, dns.rdataclass.IN, question.rdtype, *records),
        )
    return response


def _type(address: str) -> dns.rdatatype.RdataType:
    return dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A


def main() -> None:
    listen, name, *addresses = sys.argv[1:]
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((listen, 53))
    print("ready", flush=True)
    while True:
        datagram, sender = server.recvfrom(4096)
        try:
            query = dns.message.from_wire(datagram)
        except dns.exception.DNSException:
            continue
        if query.question:
            server.sendto(answer(query, dns.name.from_text(name), addresses).to_wire(), sender)


if __name__ == "__main__":
    main()
