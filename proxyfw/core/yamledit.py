"""Entries put into the lists of a YAML file and taken out, by the marks that the reader leaves.

All else stays as it is, byte for byte. What comes of it has to be read again and judged by the caller.
"""

from yaml.nodes import MappingNode, Node, SequenceNode

from proxyfw.core.yamltext import Document

_EMPTY = "[]"


class UnclearError(Exception):
    """The file is written in a way that is not edited here. `line` counts from 1; the message says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def entries(text: str, key: str) -> list[Node]:
    """The entries of the list under this key; none where there is no such key."""
    _, found = _find(text, key)
    return [] if found is None else list(found[1].value)


def added(text: str, key: str, entry: str) -> str:
    """The text with this entry, in YAML that is good between brackets too, at the end of the list under this key. The
    key itself comes to the end of the file where it is not there. Raises UnclearError.
    """
    root, found = _find(text, key)
    if found is None:
        return _with_key(text, root, key, entry)
    key_node, node = found
    end = _end(node)
    if node.flow_style:
        before = text[: node.start_mark.index].rstrip(" ")
        if text[node.start_mark.index : end] == _EMPTY and root is not None and not root.flow_style:
            bare, indent = before + text[end:], " " * key_node.start_mark.column
            return _with_lines(bare, _after_line(bare, len(before)), f"{indent}  - {entry}")
        at = _end(node.value[-1]) if node.value else node.start_mark.index + 1
        return f"{text[:at]}{', ' if node.value else ''}{entry}{text[at:]}"
    indent = text[_line_start(text, node.start_mark.index) : node.start_mark.index]
    if indent.strip(" "):
        raise UnclearError(node.start_mark.line + 1, f'write each entry of {key}: as "- entry" on a line of its own')
    return _with_lines(text, _after_line(text, end), f"{indent}- {entry}")


def removed(text: str, key: str, place: int) -> str:
    """The text without one entry of the list under this key: of a list with dashes, its lines are gone with what
    stands behind it there; a list without entries is `[]`. Raises UnclearError.
    """
    _, found = _find(text, key)
    assert found is not None
    key_node, node = found
    if node.flow_style:
        return _removed_between_brackets(text, key, node, place)
    item = node.value[place]
    dash = len(text[: item.start_mark.index].rstrip()) - 1
    start = _line_start(text, dash)
    if text[start : dash + 1].strip(" ") != "-":
        raise UnclearError(item.start_mark.line + 1, f'write each entry of {key}: as "- entry" on a line of its own')
    left = text[:start] + text[_after_line(text, _end(item)) :]
    if len(node.value) > 1:
        return left
    colon = text.find(":", key_node.end_mark.index) + 1
    return f"{left[:colon]} {_EMPTY}{left[colon:]}"


def replaced(text: str, node: Node, new: str) -> str:
    """The text with this in place of a scalar or a list between brackets."""
    return text[: node.start_mark.index] + new + text[_end(node) :]


def _removed_between_brackets(text: str, key: str, node: SequenceNode, place: int) -> str:
    items = node.value
    if len(items) == 1:
        start, end, left = node.start_mark.index, _end(node), _EMPTY
    elif place + 1 < len(items):
        start, end, left = items[place].start_mark.index, items[place + 1].start_mark.index, ""
    else:
        start, end, left = _end(items[place - 1]), _end(items[place]), ""
    if "#" in text[start:end]:
        raise UnclearError(items[place].start_mark.line + 1, f"a comment stands between the brackets of {key}:")
    return text[:start] + left + text[end:]


def _find(text: str, key: str) -> tuple[MappingNode | None, tuple[Node, SequenceNode] | None]:
    """The whole, None where there is nothing but comments; and the key with its list, None where it is not there."""
    root = Document("", text).root
    if not isinstance(root, MappingNode):
        return None, None
    for key_node, node in root.value:
        if key_node.value == key:
            if not isinstance(node, SequenceNode):
                raise UnclearError(node.start_mark.line + 1, f"{key}: is not a list")
            return root, (key_node, node)
    return root, None


def _with_key(text: str, root: MappingNode | None, key: str, entry: str) -> str:
    if root is not None and root.flow_style:
        raise UnclearError(root.start_mark.line + 1, f"{key}: is not there, and the whole is written between braces")
    indent = " " * (root.start_mark.column if root is not None else 0)
    return _with_lines(text, len(text), f"{indent}{key}:", f"{indent}  - {entry}")


def _end(node: Node) -> int:
    """Behind the last character of a node: the mark of a list with dashes is where the next thing begins."""
    if getattr(node, "flow_style", True) or not node.value:
        end: int = node.end_mark.index
        return end
    last = node.value[-1]
    return _end(last[1] if isinstance(node, MappingNode) else last)


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _after_line(text: str, index: int) -> int:
    """Behind the line that the character before `index` is on, its break included."""
    if index and text[index - 1] == "\n":
        return index
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _with_lines(text: str, at: int, *lines: str) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    before = text[:at] if at == 0 or text[at - 1] == "\n" else text[:at] + end
    return before + "".join(line + end for line in lines) + text[at:]
