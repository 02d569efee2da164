"""Presentation of a run: model card, tables and HTML page, made from the record alone."""
