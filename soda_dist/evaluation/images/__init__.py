"""Images that a model draws, and what is measured on them."""
