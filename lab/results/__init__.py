"""What benchmarks write: the format with all values, the machine, exports; the statistics that compare two results."""
