"""Exit codes of every command; 0 is done, and 1 our fault."""

EXIT_USER = 2  # what the user gave, or the file system refused
EXIT_INTERRUPTED = 75  # the same command goes on
