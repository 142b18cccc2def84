"""Folders on disk or in object stores, with retries and readable errors."""
