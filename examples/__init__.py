"""Runnable examples; nothing of the product imports them."""
