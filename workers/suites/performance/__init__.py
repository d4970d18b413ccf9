"""Fresh processes in AB/BA pairs: one test for each process and case."""
