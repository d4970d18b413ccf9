"""Confines contributor code: bubblewrap namespaces, a system-call filter, limits, a uid of its own. Imports no other
room, torch or Django.

level = sandbox.best_level()
with sandbox.spawn(Confinement(argv=..., env=..., readonly=..., socket=end.fileno()), level) as host:
    ...
    host.exit_reason()
"""

from workers.sandbox.collect import Collected, collect
from workers.sandbox.confinement import GIB, MIB, SLOTS, Confinement, Limits, View, interpreter_view
from workers.sandbox.host import HostProcess, SandboxError
from workers.sandbox.isolation import Level, NoLevel, best_level, levels
from workers.sandbox.start import spawn

__all__ = [
    "GIB",
    "MIB",
    "SLOTS",
    "Collected",
    "Confinement",
    "HostProcess",
    "Level",
    "Limits",
    "NoLevel",
    "SandboxError",
    "View",
    "best_level",
    "collect",
    "interpreter_view",
    "levels",
    "spawn",
]
