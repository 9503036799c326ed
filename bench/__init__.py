"""Benchmarks: each prints a table and is run by `make bench`, never by the tests."""
