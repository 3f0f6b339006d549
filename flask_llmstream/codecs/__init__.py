"""Wire formats: each codec turns a run's events into the bytes of one, sans-IO, an object a reader."""
