"""Fuzzing with a stated invariant: whatever bytes arrive, in whatever pieces, and however the connection ends,

* nothing raises and nothing hangs: every byte fed is consumed, refused or waited on, and every connection ends;
* the app sees a prefix of the requests that a strict reader finds in the bytes sent, unchanged and in order, and
  nothing after the first of them that is wrong;
* a refusal names a rule that was broken, and only what is sent after the last good request is refused;
* what a connection keeps of its client's bytes is bounded by its limits;
* how the bytes were split makes no difference.

`tests/test_fuzz.py` runs a few hundred cases of it. From the top of the repository, for as long as one likes:

    python -m tests.fuzz --seconds 300

    grammar.py    streams of requests, good and broken, from a seed
    oracle.py     the strict reader, written from RFC 9110 and 9112 and not from the server's parser
    answers.py    a strict reader of what the server sends
    memory.py     how many bytes an object keeps
    pure.py       the parser alone, many pieces at a time
    wire.py       a server, and clients that dawdle, half-close, stop reading and reset
    __main__.py   the command
"""
