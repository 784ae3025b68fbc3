"""Every way of personalising a model that the lab compares."""
