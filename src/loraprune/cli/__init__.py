"""The command line: one file a subcommand; they parse, print and exit."""
