"""The kernel's settings that decide whether a user without privileges may make namespaces."""

from pathlib import Path

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One finding. `found` is a phrase; `how_to_mend` is a command or a sentence, empty where nothing needs mending."""

    name: str
    ok: bool
    found: str
    how_to_mend: str = ""


def user_namespaces(settings: Path = Path("/proc/sys")) -> list[Check]:
    """One check for each setting that this kernel has."""
    found = []
    for name, refused, mend in (
        ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "give /usr/bin/bwrap an AppArmor profile with `userns,` (Ubuntu: apt install apparmor-profiles, then "
            "cp /usr/share/apparmor/extra-profiles/bwrap-userns-restrict /etc/apparmor.d/ and "
            "systemctl reload apparmor), "
            "or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        try:
            value = (settings / name.replace(".", "/")).read_text().strip()
        except OSError:
            if name == "user.max_user_namespaces":
                found.append(
                    Check(name, False, "the kernel has no user namespaces", "use a kernel with CONFIG_USER_NS")
                )
            continue
        ok = value != refused
        found.append(Check(name, ok, f"is {value}", "" if ok else mend))
    return found
