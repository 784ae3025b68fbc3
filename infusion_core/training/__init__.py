"""One engine for everything that is trained, and what it minimises: objectives."""
