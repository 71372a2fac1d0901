"""Benchmarks: time and memory beside transformers' and the machine's limit, measured in alternating rounds."""
