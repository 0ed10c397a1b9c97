"""The built-in steering files, and what makes them."""
