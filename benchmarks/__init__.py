"""Measured: the story of the embedded suite, settings, shortcuts, estimates (`make bench`)."""
