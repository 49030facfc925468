# Runs a command in a machine with the tools of the host, by way of the bus, and ends as it does:
#
#     python3 attach.py MACHINE COMMAND [ARGUMENT...]
#
# It wants Debian's python3-dbus. See org.cntr.Attach1(5).
import json
import os
import shutil
import sys

import dbus

manager = dbus.Interface(
    dbus.SystemBus().get_object("org.cntr.Attach1", "/org/cntr/Attach1"),
    "org.cntr.Attach1.Manager",
)
reader, writer = os.pipe()
session, path, status, results = manager.Attach(
    sys.argv[1], sys.argv[2:], {"stdout": dbus.types.UnixFd(writer)}
)
os.close(writer)
with os.fdopen(reader, "rb") as output:
    shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.flush()
# The session holds on to the command until this end of the pipe is closed.
with os.fdopen(status.take()) as end:
    how = json.load(end)
if "error" in how:
    sys.exit("attach.py: the session failed: " + how["error"]["message"])
sys.exit(128 + how["signal"] if "signal" in how else how["exit"])
