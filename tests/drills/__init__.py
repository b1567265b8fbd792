"""Harm done to real runs, many times over; `python -m tests.drills` writes what came of it."""
