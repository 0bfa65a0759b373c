"""What the embedded suite, the crosscoder's settings and the package's shortcuts give, measured: `make bench`."""
