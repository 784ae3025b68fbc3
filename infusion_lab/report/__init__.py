"""What the lab shows: tables, figures, verdicts, the page."""
