"""Pure: bytes, text and `now` in, values out. No sockets, files, clock or subprocess."""
