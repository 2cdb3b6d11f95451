"""dynamic-firewall's clients file, read as it is."""

import pytest

from proxyfw.core.clientsfile import parse_clients
from proxyfw.core.config import Client
from proxyfw.core.problem import Where

OTHER = Client("mail", (), (), False, (), Where("proxyfw.yaml", 2))

EXAMPLE = """\
# qube-name       profiles
programming       github  pypi
studying          wikipedia
"""


def test_the_example_of_dynamic_firewall() -> None:
    clients, problems = parse_clients("clients", EXAMPLE, {})
    assert problems == []
    assert [(client.name, client.profiles, str(client.where)) for client in clients.values()] == [
        ("programming", ("github", "pypi"), "clients:2"),
        ("studying", ("wikipedia",), "clients:3"),
    ]
    assert clients["programming"].profiles_where == (Where("clients", 2), Where("clients", 2))
    assert not any(client.observe or client.dns_all or client.addresses for client in clients.values())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("\n  \n\t\n#work github\n  # work\n", [], id="blank lines and comments"),
        pytest.param("work", ["work"], id="no profile, no end of line"),
        pytest.param(
            "work\tgithub # since spring\r\nstudy wikipedia\r\n", ["work", "study"], id="tabs, comments, CRLF"
        ),
    ],
)
def test_lines(text: str, names: list[str]) -> None:
    clients, problems = parse_clients("clients", text, {})
    assert (list(clients), problems) == (names, [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("a x\nwork y\nwork z", 'clients:3: error: "work" is listed already (clients:2)', id="twice"),
        pytest.param(
            "mail x", 'clients:1: error: "mail" is listed already (proxyfw.yaml:2)', id="also in proxyfw.yaml"
        ),
        pytest.param("a\n7up x", 'clients:2: error: "7up" is not the name of a qube', id="no name"),
        pytest.param("tag:x y", 'clients:1: error: "tag:x" is not the name of a qube', id="a tag"),
    ],
)
def test_errors_name_the_line_and_lose_no_other_client(text: str, error: str) -> None:
    _, problems = parse_clients("clients", text + "\nlast github\n", {"mail": OTHER})
    assert [str(problem).partition(";")[0] for problem in problems] == [error]
    assert all(problem.fix for problem in problems)
