"""What runs have to say for themselves: curves read from logs, and pictures of them."""
