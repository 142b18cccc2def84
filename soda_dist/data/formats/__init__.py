"""Readers of file formats: archives, databases, tables, trees of files. None knows a data set."""
