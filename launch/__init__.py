"""Start one command as many ranks, each on its own cores. Never imports torch."""
