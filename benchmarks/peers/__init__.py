"""What the benchmarks share: the machines that are compared, how one boot is measured, and the figures."""
