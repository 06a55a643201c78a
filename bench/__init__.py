"""Test benches: the virtual cabinet, hardware-in-the-loop scenarios, benchmarks."""
