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

`python -m tests.bench.hostile` attacks hardserve instead, while a normal client measures:

    hostile.py          the parts of the attack, and the bars that each is held to
    hostile_clients.py  thousands of clients that mean harm, in a process of their own
    hostile_normal.py   the client that means none
    hostile_endless.py  requests that never end: where they are cut, and what a byte of them costs

`python -m tests.bench.limits` holds rate limiting to its bars, and `python -m tests.bench.files` the serving of files:

    command.py          the options and the order of things of such a command
    limits*.py          its parts, its load, and what it measures without a server
    files.py            the parts, against nginx and WhiteNoise, and on a slow disk
    files_servers.py    how each of them is told to serve files
    files_clients.py    who downloads: fast on one connection, slowly on many

Linux only: it reads /proc, and uses 127.0.0.0/8 for many client addresses.
"""
