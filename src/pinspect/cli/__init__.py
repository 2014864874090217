"""The `pinspect` command and the tables that it prints."""
