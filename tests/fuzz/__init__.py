"""Coverage-guided fuzzing of what reads bytes from clients: `python -m tests.fuzz --seconds 60`, or with targets' names."""
