"""From the bytes of an image to the views that the networks see."""
