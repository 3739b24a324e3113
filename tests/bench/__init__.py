"""The benchmark: hardserve and its peers on this machine, the same app, one command.

`python -m tests.bench` from the top of the repository; `--help` says the rest. A program, not a
test: it asserts nothing, and what it prints is only true of the machine it ran on.

    __main__.py   the arguments and the order of things
    peers.py      how each server is started, and why that is fair to it
    process.py    starting, watching and ending a server's processes
    wrk.py        the load, and reading what wrk says
    idle.py       the client that holds ten thousand idle connections
    ceiling.py    what the sleeping app can do with no server at all
    report.py     medians, ratios, bars and tables

Linux only: it reads /proc, and uses 127.0.0.0/8 for many client addresses.
"""
