"""The scenarios of `reloadlab run`: pytest suites on the lab."""
