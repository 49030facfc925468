# cntr-attach: programs of the machine have their files, and gdb is to find these, in the machine. By itself it
# looks there with setns(2), which a machine without CAP_SYS_ADMIN does not allow, and which does not lead to the root
# directory of a process that was chrooted.
import gdb
import os
import re

# gdb would also load libthread_db from the machine, if the user has switched off its guard against that with
# "set auto-load safe-path /". The host's is good for threads of both.
gdb.execute("set libthread-db-search-path $sdir")

sysroot = gdb.parameter("sysroot")


def look_in_its_own_root(event):
    pid = event.inferior_thread.ptid[0]
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            if gdb.parameter("sysroot") != sysroot:
                gdb.execute(f"set sysroot {sysroot}", False, True)
            return
        gdb.execute(f"set sysroot /proc/{pid}/root", False, True)
        top, program = os.readlink(f"/proc/{pid}/root"), os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return  # gdb will say itself that it may not
    # A chrooted program has its path from outside, where gdb does not find it. The machine chose the name, so it is used
    # only if it is nothing but a name.
    inside = program[len(top):]
    if top != "/" and program.startswith(top + "/") and re.fullmatch(r"[\w./+-]+", inside, re.ASCII):
        if gdb.current_progspace().filename is None and os.path.exists(f"/proc/{pid}/root{inside}"):
            gdb.execute(f"file /proc/{pid}/root{inside}", False, True)


if sysroot in ("target:", "/"):
    gdb.events.new_thread.connect(look_in_its_own_root)
