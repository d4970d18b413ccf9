"""The reference inference engine whose modules are swapped. Imports nothing of workers or platform."""
