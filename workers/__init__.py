"""The data plane: takes a Job, judges contributor code in a sandbox, returns an Outcome. Imports engine, never platform."""
