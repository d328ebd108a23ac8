"""One module per command of `reloadlab`: `add_parser` declares it, `run` runs it and returns the exit code."""
