"""Published data sets made small, each written in its published layout by means of its own, not the importer's."""
