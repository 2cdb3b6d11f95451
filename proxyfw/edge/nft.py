"""The one door to nftables: libnftables, one atomic transaction a call."""

import json
from typing import Any

import nftables

from proxyfw.core.ruleset import TABLE


class NftError(Exception):
    """The kernel or the parser refused the transaction; nothing was changed."""


class Nft:
    """Needs CAP_NET_ADMIN in the network namespace it is used in. Definitions last for one call: a context each."""

    def apply(self, text: str) -> None:
        """Applies all of the text, or nothing. Raises NftError."""
        status, _, error = nftables.Nftables().cmd(text)
        if status:
            raise NftError(error.strip() or f"libnftables answered {status}")

    def has_table(self) -> bool:
        """Whether a table of proxyfw (its ruleset or the fail-safe) is in force."""
        return bool(nftables.Nftables().cmd(f"list table {TABLE}")[0] == 0)

    def counter(self, name: str) -> int:
        """Packets of a named counter of proxyfw's table; 0 where there is none."""
        nft = nftables.Nftables()
        nft.set_json_output(True)
        status, output, _ = nft.cmd(f"list counter {TABLE} {name}")
        if status:
            return 0
        items: list[dict[str, Any]] = json.loads(output)["nftables"]
        return sum(item["counter"]["packets"] for item in items if "counter" in item)
