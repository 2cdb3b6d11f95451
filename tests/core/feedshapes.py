"""Small documents in the shape of those that owners publish, what is selected in them, and what is to be found."""

from pathlib import Path
from typing import NamedTuple

from proxyfw.core.feedformats import Format

FOLDER = Path(__file__).parent / "feeds"


class Shape(NamedTuple):
    """`networks`: in the order of the document, those that stand there twice once."""

    file: str
    format: Format
    select: tuple[str, ...]
    networks: tuple[str, ...]

    @property
    def document(self) -> bytes:
        return (FOLDER / self.file).read_bytes()


def _shape(file: str, format: Format, select: tuple[str, ...], networks: str) -> Shape:
    return Shape(file, format, select, tuple(networks.split()))


_GITHUB_OWN = "192.30.252.0/22 185.199.108.0/22 140.82.112.0/20 143.55.64.0/20 2a0a:a440::/29 2606:50c0::/32"
_WIKIMEDIA = """208.80.152.0/22 198.35.26.0/23 2620:0:860::/46 91.198.174.0/24 185.15.56.0/22 193.46.90.0/24
    195.200.68.0/24 2a02:ec80::/29 103.102.166.0/24 2001:df2:e500::/48"""

SHAPES = {
    "GitHub: git": _shape("github-meta.json", Format.JSON, ("git",), f"{_GITHUB_OWN} 20.201.28.151/32"),
    "GitHub: packages and pages": _shape(
        "github-meta.json",
        Format.JSON,
        ("packages", "pages"),
        """140.82.121.33/32 140.82.121.34/32 20.201.28.144/32 192.30.252.153/32 192.30.252.154/32 185.199.108.153/32
        2606:50c0:8000::153/128 2606:50c0:8001::153/128""",
    ),
    "GitHub: all": _shape(
        "github-meta.json",
        Format.JSON,
        (),
        f"""{_GITHUB_OWN} 20.201.28.151/32 20.205.243.166/32 20.201.28.148/32 40.71.233.224/28 20.99.172.64/28
        140.82.121.33/32 140.82.121.34/32 20.201.28.144/32 192.30.252.153/32 192.30.252.154/32 185.199.108.153/32
        2606:50c0:8000::153/128 2606:50c0:8001::153/128 52.23.85.212/32 52.0.228.224/32 4.148.0.0/16 4.149.0.0/18
        2a01:111:f403:d91b::/64 2a01:111:f403:da00::/64 13.105.117.0/31 13.105.220.0/25 20.42.11.16/28
        172.210.54.224/28 18.213.123.130/32 4.237.22.41/32""",
    ),
    "Google": _shape(
        "google-goog.json",
        Format.JSON,
        (),
        """8.8.4.0/24 8.8.8.0/24 34.64.0.0/10 142.250.0.0/15 216.58.192.0/19 2001:4860::/32 2607:f8b0::/32
        2a00:1450::/32""",
    ),
    "Google: IPv4": _shape(
        "google-goog.json",
        Format.JSON,
        ("prefixes.ipv4Prefix",),
        "8.8.4.0/24 8.8.8.0/24 34.64.0.0/10 142.250.0.0/15 216.58.192.0/19",
    ),
    "Google Cloud": _shape(
        "google-cloud.json",
        Format.JSON,
        ("prefixes",),
        "34.1.208.0/20 34.35.0.0/16 34.80.0.0/15 2600:1900:4030::/44 34.76.0.0/14 2600:1900:4010::/44",
    ),
    "Google Cloud: a region": _shape(
        "google-cloud.json",
        Format.JSON,
        ("prefixes[service=Google Cloud][scope=europe-west1]",),
        "34.76.0.0/14 2600:1900:4010::/44",
    ),
    "AWS": _shape(
        "aws-ip-ranges.json",
        Format.JSON,
        (),
        """3.5.140.0/22 52.94.76.0/22 13.224.0.0/14 52.218.0.0/17 3.5.64.0/21 15.181.232.0/21 2a05:d07a:a000::/40
        2a05:d050:8080::/44 2600:9000:3000::/36""",
    ),
    "AWS: S3 of a region": _shape(
        "aws-ip-ranges.json",
        Format.JSON,
        (
            "prefixes[service=S3][region=eu-west-1].ip_prefix",
            "ipv6_prefixes[service=S3][region=eu-west-1].ipv6_prefix",
        ),
        "52.218.0.0/17 3.5.64.0/21 2a05:d050:8080::/44",
    ),
    "Fastly": _shape(
        "fastly.json",
        Format.JSON,
        ("addresses", "ipv6_addresses"),
        """23.235.32.0/20 43.249.72.0/22 103.244.50.0/24 103.245.222.0/23 103.245.224.0/24 104.156.80.0/20
        140.248.64.0/18 140.248.128.0/17 146.75.0.0/17 151.101.0.0/16 157.52.64.0/18 167.82.0.0/17 167.82.128.0/20
        167.82.160.0/20 167.82.224.0/20 172.111.64.0/18 185.31.16.0/22 199.27.72.0/21 199.232.0.0/16 2a04:4e40::/32
        2a04:4e42::/32""",
    ),
    "Cloudflare: IPv4": _shape(
        "cloudflare-v4.txt",
        Format.TEXT,
        (),
        """173.245.48.0/20 103.21.244.0/22 103.22.200.0/22 103.31.4.0/22 141.101.64.0/18 108.162.192.0/18
        190.93.240.0/20 188.114.96.0/20 197.234.240.0/22 198.41.128.0/17 162.158.0.0/15 104.16.0.0/13 104.24.0.0/14
        172.64.0.0/13 131.0.72.0/22""",
    ),
    "Cloudflare: IPv6": _shape(
        "cloudflare-v6.txt",
        Format.TEXT,
        (),
        """2400:cb00::/32 2606:4700::/32 2803:f800::/32 2405:b500::/32 2405:8100::/32 2a06:98c0::/29
        2c0f:f248::/32""",
    ),
    "Wikimedia": _shape("wikimedia.html", Format.HTML_TABLE, ("#Public_IPs",), _WIKIMEDIA),
    "Wikimedia: the column": _shape("wikimedia.html", Format.HTML_TABLE, ("#Public_IPs/Prefix",), _WIKIMEDIA),
    "Wikimedia: all tables": _shape(
        "wikimedia.html", Format.HTML_TABLE, (), f"{_WIKIMEDIA} 10.64.0.0/12 10.192.0.0/12"
    ),
    "Microsoft 365": _shape(
        "microsoft365.json",
        Format.JSON,
        ("ips",),
        """13.107.6.152/31 13.107.18.10/31 40.96.0.0/13 2603:1006::/40 2603:1016::/36 40.92.0.0/15 2a01:111:f400::/48
        52.112.0.0/14 52.122.0.0/15 2603:1063::/38 13.107.136.0/22 40.108.128.0/17 2a01:111:f402::/48""",
    ),
    "Microsoft 365: what mail needs": _shape(
        "microsoft365.json",
        Format.JSON,
        ("[serviceArea=Exchange][required=true].ips", "[id=2].ips"),
        "13.107.6.152/31 13.107.18.10/31 40.96.0.0/13 2603:1006::/40 2603:1016::/36 40.92.0.0/15 2a01:111:f400::/48",
    ),
    "Telegram": _shape(
        "telegram.txt",
        Format.TEXT,
        (),
        """91.108.56.0/22 91.108.4.0/22 91.108.8.0/22 91.108.16.0/22 91.108.12.0/22 149.154.160.0/20 91.105.192.0/23
        91.108.20.0/22 185.76.151.0/24 2001:b28:f23d::/48 2001:b28:f23f::/48 2001:67c:4e8::/48 2001:b28:f23c::/48
        2a0a:f280::/32""",
    ),
}
"""By owner, and what is selected."""
