"""Arrays in, bytes of a picture out."""
