"""What the lab measures, a module per question."""
