"""The mitmproxy engine: its layers by themselves, and the installed command in namespaces."""
