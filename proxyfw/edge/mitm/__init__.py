"""mitmproxy as the way in and out: its listeners, its connections to servers, and layers of our own in between.

mitmproxy's layers that parse TLS and HTTP are never in use: each connection gets one of ours (tcp.py, udp.py), which
reads what the client says by the same parsers as the proxy does, and asks before it opens anything. What is permitted
is passed on as it is; there is no certificate authority, and nothing that could make a certificate.
"""
