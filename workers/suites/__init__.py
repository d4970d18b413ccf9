"""The three pytest suites that run in the judge: unit, integration, performance. They see a `Trial`, and know no kind by name."""
