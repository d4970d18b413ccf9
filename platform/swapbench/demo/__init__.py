"""The demo: a local forge with sample pull requests, and all processes of the platform on this machine."""
