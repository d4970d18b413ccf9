"""The kernel's settings that decide whether a user without privileges may make namespaces."""

import os
from pathlib import Path

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One finding. `found` is a phrase; `how_to_mend` is a command or a sentence, empty where nothing needs mending."""

    name: str
    ok: bool
    found: str
    how_to_mend: str = ""


# Both of these refuse namespaces to processes without privileges only.
_CLONE = "kernel.unprivileged_userns_clone"
_APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
_MOST = "user.max_user_namespaces"


def user_namespaces(settings: Path = Path("/proc/sys"), *, privileged: bool | None = None) -> list[Check]:
    """One check for each setting that this kernel has. `privileged`: whether the worker is root (default: is it?)."""
    privileged = os.geteuid() == 0 if privileged is None else privileged
    found = []
    for name, refused, mend in (
        (_CLONE, "0", f"sysctl -w {_CLONE}=1"),
        (_MOST, "0", f"sysctl -w {_MOST}=15000"),
        (
            _APPARMOR,
            "1",
            "give /usr/bin/bwrap an AppArmor profile with `userns,` (Ubuntu: apt install apparmor-profiles, then "
            "cp /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ and "
            f"systemctl reload apparmor), or sysctl -w {_APPARMOR}=0",
        ),
    ):
        value = _value(settings, name)
        if value is None:
            if name == _MOST:
                found.append(
                    Check(name, False, "the kernel has no user namespaces", "use a kernel with CONFIG_USER_NS")
                )
        elif value != refused:
            found.append(Check(name, True, f"is {value}"))
        elif privileged and name != _MOST:
            found.append(Check(name, True, f"is {value}, but the worker runs as root and makes the namespaces itself"))
        else:
            found.append(Check(name, False, f"is {value}", mend))
    return found


def refuses_the_unprivileged(settings: Path = Path("/proc/sys")) -> bool:
    """Whether only a process with privileges may make a user namespace, as on Ubuntu 24.04 by default."""
    return _value(settings, _CLONE) == "0" or _value(settings, _APPARMOR) == "1"


def _value(settings: Path, name: str) -> str | None:
    try:
        return (settings / name.replace(".", "/")).read_text().strip()
    except OSError:
        return None
