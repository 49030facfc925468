# cntr-attach: programs of the machine have their files, and gdb is to find these, in the machine. By itself it
# looks there with setns(2), which a machine without CAP_SYS_ADMIN does not allow.
import gdb
import os


def look_in_its_own_root(event):
    pid = event.inferior_thread.ptid[0]
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            gdb.execute(f"set sysroot /proc/{pid}/root", False, True)
    except OSError:
        pass  # gdb will say itself that it may not


if gdb.parameter("sysroot") in ("target:", "/"):
    gdb.events.new_thread.connect(look_in_its_own_root)
