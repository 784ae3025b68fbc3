"""The terminal's door: the command ``infusion``."""
