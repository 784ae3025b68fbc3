"""How much a customised model has changed, and how well it draws its subject. See docs/metrics.md."""
