"""Many concepts on many machines: the door of those who serve others. Needs the extra ``cluster`` (Ray)."""
