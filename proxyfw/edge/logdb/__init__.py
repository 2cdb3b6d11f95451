"""The log of decisions, in SQLite: one writer per file, any number of readers."""

from proxyfw.edge.logdb.reader import LogReader, LogSize
from proxyfw.edge.logdb.schema import LogError, Row, query
from proxyfw.edge.logdb.writer import LogWriter

__all__ = ["LogError", "LogReader", "LogSize", "LogWriter", "Row", "query"]
