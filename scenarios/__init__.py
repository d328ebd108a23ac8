"""What users run: pytest suites on the lab."""
