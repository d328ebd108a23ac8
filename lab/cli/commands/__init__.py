"""One module per command of `reloadlab`: `add_parser` declares it, `run` does it and returns the exit code."""
