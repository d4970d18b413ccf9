"""Coverage-guided fuzzing, time-boxed and apart from the tests: it needs `pip install atheris`."""
