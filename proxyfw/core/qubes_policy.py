"""What dom0 has to be told once: the policy by which a netvm may ask for its clients' names, and the commands for them.

Both are text to be taken to dom0; nothing of it can be done from a qube.
"""

from collections.abc import Iterator, Sequence

POLICY_FILE = "/etc/qubes/policy.d/30-proxyfw.policy"
_MARK = "proxyfw"
"""The tag of dom0 that stands for: the netvm may know of this qube."""

# A call for all of Qubes goes to dom0 without an argument. What it then answers, or tells, is filtered qube by qube, an
# event by its name as the argument with _ for : (qubes/ext/admin.py of qubes-core-admin). A qube that has just lost its
# tag, or is gone, is no longer @tag:proxyfw when that is told.
_QUESTIONS = (
    ("which qubes are there: of those without the tag, nothing is shown",),
    ("admin.vm.List", "+", "@adminvm"),
    ("admin.vm.List", "+", "@tag:proxyfw"),
    ("their netvms, addresses and tags",),
    ("admin.vm.property.Get", "+netvm", "@tag:proxyfw"),
    ("admin.vm.property.Get", "+ip", "@tag:proxyfw"),
    ("admin.vm.property.Get", "+ip6", "@tag:proxyfw"),
    ("admin.vm.tag.List", "+", "@tag:proxyfw"),
    ("that one of these may have changed",),
    ("admin.Events", "+", "@adminvm"),
)
_EVENTS = (
    "domain-start",
    "domain-shutdown",
    "property-set_name",
    *(f"property-{what}_{key}" for key in ("netvm", "ip", "ip6") for what in ("set", "reset")),
    "domain-feature-set_ipv6",
    "domain-feature-delete_ipv6",
)


def render(netvm: str, clients: Sequence[str], tags: Sequence[str]) -> str:
    """All of it, as a script for a terminal of dom0: the policy in a here-document, then the commands.

    `clients` and `tags`: those of the configuration.
    """
    return f"""\
# For dom0. What a qube has written is never to be run there unread: type it off, or fetch it as a file, in dom0,
#   qvm-run --pass-io {netvm} 'proxyfw qubes-policy' > proxyfw-dom0.sh
# and read every line of it first (cat -v proxyfw-dom0.sh): policy lines for {netvm} alone, and qvm- commands for
# the qubes that you mean; then sh proxyfw-dom0.sh

sudo tee {POLICY_FILE} > /dev/null <<'END'
{policy(netvm, tags)}END

{commands(netvm, clients, tags)}"""


def policy(netvm: str, tags: Sequence[str]) -> str:
    """The policy file: what this netvm alone may ask, about qubes with the tag `proxyfw` alone. It can change nothing.

    Columns: service, argument, source, target, action (Qubes' policy format, qrexec/policy/parser.py of
    qubes-core-qrexec).
    """
    lines = [
        f"# proxyfw in {netvm}: it may ask about qubes with the tag {_MARK}, and can change nothing.",
        "# Made by `proxyfw qubes-policy`; make it anew when other tags are in proxyfw's configuration.",
    ]
    for words in (*_QUESTIONS, *_told(tags)):
        if len(words) == 1:
            lines.append(f"# {words[0]}")
        else:
            service, argument, target = words
            lines.append(f"{service:<21}  {argument:<32}  {netvm}  {target:<12}  allow target=dom0")
    return "\n".join(lines) + "\n"


def _told(tags: Sequence[str]) -> Iterator[tuple[str, ...]]:
    others = [tag for tag in tags if tag != _MARK]
    tag_events = [f"domain-tag-{what}_{tag}" for tag in others for what in ("add", "delete")]
    for event in (*_EVENTS, f"domain-tag-add_{_MARK}", *tag_events):
        yield "admin.Events", f"+{event}", "@tag:proxyfw"
    for event in (f"domain-tag-delete_{_MARK}", "domain-delete"):
        yield "admin.Events", f"+{event}", "@anyvm"


def commands(netvm: str, clients: Sequence[str], tags: Sequence[str]) -> str:
    """The commands for dom0; what is to be decided there is a comment."""
    lines = [
        "# The service, where proxyfw is in the template of this netvm; from the netvm's next start on.",
        f"qvm-service {netvm} {_MARK} on",
    ]
    if clients:
        lines += ["", "# The clients: the netvm may know of them, and is their netvm."]
    for client in clients:
        lines += [f"qvm-tags {client} add {_MARK}", f"qvm-prefs {client} netvm {netvm}"]
    for tag in tags:
        lines += [
            "",
            f"# Each qube that is to be a client by the tag {tag} (qvm-ls --raw-list --tags {tag} lists them):",
            f"#   qvm-tags QUBE add {tag} {_MARK}",
            f"#   qvm-prefs QUBE netvm {netvm}",
        ]
    example = clients[0] if clients else "CLIENT"
    lines += [
        "",
        "# To hold a client's profiles in dom0 instead of in the netvm's configuration; it takes effect at once:",
        f'#   qvm-features {netvm} vm-config.proxyfw-{example} "github pypi"',
    ]
    return "\n".join(lines) + "\n"
