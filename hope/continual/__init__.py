"""Learning tasks one after another, and what is kept of them."""
