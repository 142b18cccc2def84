"""Readers of file formats: archives, databases, tables, file trees. Independent of data sets."""
