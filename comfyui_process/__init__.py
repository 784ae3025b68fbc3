"""A ComfyUI in a process of its own: find it, start it, drive it as its page does.

Tests, benchmarks and scripts use it.
"""
