"""The module host: the only code that runs beside contributor code. Imports engine.slots and workers.wire; trusted by nobody.

Whatever happens in this process is only a claim; the judge believes the bytes in its own buffers and its own clock.
"""
