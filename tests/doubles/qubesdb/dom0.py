"""Writes to a netvm's QubesDB as dom0 does: the same keys in the same order (qubes-core-admin: qubes/vm/mix/net.py,
qubes/vm/qubesvm.py, qubes/firewall.py, qubes/ext/vm_config.py).
"""

from collections.abc import Iterable

from qubesdb import QubesDB


class _At(QubesDB):
    def __init__(self, path: str) -> None:
        self._socket_path = path
        super().__init__()

    def _path(self) -> str:
        return self._socket_path


class Dom0:
    """`db` is its connection, for what dom0 would not do."""

    def __init__(self, path: str) -> None:
        self.db = _At(path)

    def close(self) -> None:
        """Ends its connection; the database stays."""
        self.db.close()

    def netvm(self, name: str, dns: Iterable[str] = ("10.139.1.1", "10.139.1.2")) -> None:
        """What a netvm finds when it starts: its name, the resolvers its clients are told, and no client."""
        self.db.write("/name", name)
        for which, address in zip(("primary", "secondary"), dns, strict=True):
            self.db.write(f"/qubes-netvm-{which}-dns", address)
        self.connected([])

    def dns(self, primary: str, secondary: str) -> None:
        """The netvm's own resolvers."""
        self.db.write("/qubes-primary-dns", primary)
        self.db.write("/qubes-secondary-dns", secondary)

    def firewall(self, ip: str, rules: Iterable[str | None], policy: str = "drop") -> None:
        """The rules of one address. None: the number of a rule that has expired, or is for the other family."""
        self.begin(ip)
        self.db.write(f"/qubes-firewall/{ip}/policy", policy)
        for number, rule in enumerate(rules):
            if rule is not None:
                self.db.write(f"/qubes-firewall/{ip}/{number:04}", rule)
        self.commit(ip)

    def begin(self, ip: str) -> None:
        """The first step of a change: the old rules go. The empty key of the last change stays."""
        self.db.rm(f"/qubes-firewall/{ip}/")

    def commit(self, ip: str) -> None:
        """The last step."""
        self.db.write(f"/qubes-firewall/{ip}", "")

    def handled(self, ip: str) -> int:
        """How often the netvm said that it applied the rules of an address."""
        return int(self.db.read(f"/qubes-firewall-handled/{ip}") or b"0")

    def connected(self, ips: Iterable[str]) -> None:
        """The visible addresses of all qubes with this netvm, running or not."""
        ips = list(ips)
        self.db.write("/connected-ips", " ".join(ip for ip in ips if ":" not in ip))
        self.db.write("/connected-ips6", " ".join(ip for ip in ips if ":" in ip))

    def mapped(self, ip: str, visible: str | None, gateway: str | None = None) -> None:
        """The address that a qube is shown instead of its own; None: its own."""
        for key, value in (("visible-ip", visible), ("visible-gateway", gateway)):
            path = f"/mapped-ip/{ip}/{key}"
            if value is None:
                self.db.rm(path)
            else:
                self.db.write(path, value)

    def vm_config(self, key: str, value: str | None) -> None:
        """`qvm-features NETVM vm-config.KEY VALUE`; None: `--unset`."""
        if value is None:
            self.db.rm(f"/vm-config/{key}")
        else:
            self.db.write(f"/vm-config/{key}", value)
