"""The run: configuration, engine, loop, checkpoints, metrics, evaluation and reports."""
