"""Pages: views parse a request and answer it; queries say what is shown; figures are drawn on the server.

May import `swapbench.submissions`, `swapbench.mergequeue`, `swapbench.standings` and `workers.protocol`; nothing imports it.
"""
