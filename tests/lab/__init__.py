"""The installed proxyfw, driven as its users drive it, in a network of namespaces. Needs root."""
