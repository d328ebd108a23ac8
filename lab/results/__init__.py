"""What measurements write: the format with all values, the machine, exports; what compares results, and keeps them."""
