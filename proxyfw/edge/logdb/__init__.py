"""The log of decisions, in SQLite: one writer per file, any number of readers."""

from proxyfw.edge.logdb.reader import LogReader
from proxyfw.edge.logdb.schema import LogError, Row, query
from proxyfw.edge.logdb.writer import LogWriter

__all__ = ["LogError", "LogReader", "LogWriter", "Row", "query"]
