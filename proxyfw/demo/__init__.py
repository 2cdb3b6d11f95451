"""A network of namespaces, with clients, a netvm with the real service, and an internet: for the demo and the lab."""
