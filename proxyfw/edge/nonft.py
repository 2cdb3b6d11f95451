"""What stands where there is no packet layer: programs of one machine ask for a proxy, and nothing is forwarded."""

from collections.abc import Iterable

from proxyfw.core.address import IPAddress
from proxyfw.core.addresslist import Range
from proxyfw.core.nftbatch import Change
from proxyfw.edge.nft import Nft


class NoNft(Nft):
    """Takes everything, and holds nothing."""

    def another(self) -> "NoNft":
        """The same."""
        return self

    def change(self, changes: Iterable[Change]) -> None:
        """There is nothing to change."""

    def elements(self, names: Iterable[str]) -> list[tuple[IPAddress, IPAddress, int, int]]:
        """None."""
        return []

    def tables(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def ranges(self, name: str, version: int) -> list[Range]:
        """None."""
        return []
