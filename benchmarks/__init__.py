"""What the server costs, beside the usual way of writing the same thing: ``python -m benchmarks stream``."""
