"""proxyfw: an egress firewall by name for Qubes OS."""

__version__ = "0.1.0"
