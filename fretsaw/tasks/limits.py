"""What a task can make."""

MAX_PROBLEMS = 1_000_000  # that are generated
