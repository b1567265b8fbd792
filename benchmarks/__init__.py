"""Side-by-side measurements: each prints a table, or JSON, and can write it into the documentation."""
