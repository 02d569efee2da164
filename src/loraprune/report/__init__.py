"""The report of a run: its data, a web page and a table for the terminal."""
