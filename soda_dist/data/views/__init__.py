"""From image bytes to the views that the networks see."""
