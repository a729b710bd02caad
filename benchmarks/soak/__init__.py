"""The reliability suite: faults of every kind, and what became of the work (`__main__`)."""
