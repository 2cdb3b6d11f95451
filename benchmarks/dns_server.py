"""The benchmark's resolver: one name, one A record, over UDP. Usage: dns_server.py LISTEN NAME ADDRESS"""

import socket
import sys

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TTL = 300  # seconds


def answer(query: dns.message.Message, name: dns.name.Name, address: str) -> dns.message.Message:
    """A for `name`; no data for its other types; NXDOMAIN for any other name."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    question = query.question[0]
    if question.name != name:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        response.answer.append(
            dns.rrset.from_text(question.name, TTL, dns.rdataclass.IN, dns.rdatatype.A, address),
        )
    return response


def main() -> None:
    listen, name, address = sys.argv[1:]
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
            server.sendto(answer(query, dns.name.from_text(name), address).to_wire(), sender)


if __name__ == "__main__":
    main()
