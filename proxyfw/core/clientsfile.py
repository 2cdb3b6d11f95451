"""A clients file in the format of dynamic-firewall: a line for each qube, its name and its profiles; # for comments."""

from collections.abc import Mapping

from proxyfw.core.config import NAME_FIX, Client, is_qube_name
from proxyfw.core.problem import Problem, Where


def parse_clients(file: str, text: str, others: Mapping[str, Client]) -> tuple[dict[str, Client], list[Problem]]:
    """The clients in the order written, and the errors, each at its line. `others`: those listed elsewhere."""
    clients: dict[str, Client] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        name, *profiles = line.partition("#")[0].split() or ("",)
        where = Where(file, number)
        if not name:
            continue
        before = clients.get(name) or others.get(name)
        if not is_qube_name(name):
            problems.append(Problem(where, f'"{name}" is not the name of a qube', NAME_FIX))
        elif before is not None:
            problems.append(Problem(where, f'"{name}" is listed already ({before.where})', "list each qube once"))
        else:
            places = tuple(where for _ in profiles)
            clients[name] = Client(name, tuple(profiles), places, observe=False, addresses=(), where=where)
    return clients, problems
