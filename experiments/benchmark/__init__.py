"""The cost of kernels and train steps."""
