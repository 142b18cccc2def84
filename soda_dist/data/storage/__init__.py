"""Folders on a disk or in an object store, the errors of stores, and retries."""
