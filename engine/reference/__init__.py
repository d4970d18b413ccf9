"""The judge's own implementation of each kind: naive, accumulating in float32, obviously right. Never a slot."""
