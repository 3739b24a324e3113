"""The plan of the shipped templates, systemd/hardserve@.*: an instance is an app.

Pure, in the command only.
"""

from __future__ import annotations

from hardserve.units.plan import OLDEST, Plan, Socket, mark
from hardserve.units.text import Line

EVERY_ADDRESS = ("80",)


def template_plan(version: int = OLDEST) -> Plan:
    """Return the plan of hardserve@.service and its sockets, for a systemd of this version."""
    sockets = (
        Socket(name="hardserve@", streams=EVERY_ADDRESS),
        Socket(name="hardserve-redirect@", streams=EVERY_ADDRESS, redirects=True),
    )
    return Plan(
        name="hardserve@",
        title="%i",
        head=(
            mark("hardserve systemd --template"),
            "",
            "An app as a service: hardserve@myapp has its code and its virtual environment .venv, with hardserve,",
            "in /srv/myapp, its settings in /etc/hardserve/myapp.toml and its secrets in /etc/hardserve/myapp.env.",
            "    systemctl enable --now hardserve@myapp                           # a port from 1024 up",
            "    systemctl enable --now hardserve@myapp.socket hardserve@myapp    # port 80: see hardserve@.socket",
            "`systemctl edit hardserve@myapp` changes something for this app. For an app elsewhere, as below /home,",
            "there is `hardserve systemd --install`, typed in its directory.",
        ),
        command="/srv/%i/.venv/bin/hardserve --config /etc/hardserve/%i.toml --env-file ${CREDENTIALS_DIRECTORY}/env",
        directory="/srv/%i",
        data="hardserve/%i",
        version=version,
        credentials=(
            Line(
                "LoadCredential",
                "env:/etc/hardserve/%i.env",
                "The app's secrets, as in .env (which it reads like python-dotenv; systemd's EnvironmentFile= reads "
                "quotes and comments differently). systemd reads it as root: root:root, mode 0600. Without the file it "
                "is an empty line. A .env in /srv would have to be readable by everybody.",
            ),
            Line("SetCredential", r"env:\n"),
            Line(
                "LoadCredential",
                "certificate:/etc/letsencrypt/live/example.org/fullchain.pem",
                "A certificate whose key only root may read. It is copied at the start: after a renewal, restart.",
                example=True,
            ),
            Line("LoadCredential", "key:/etc/letsencrypt/live/example.org/privkey.pem", example=True),
            Line(
                "Environment",
                "HARDSERVE_TLS_CERTIFICATE=%d/certificate HARDSERVE_TLS_KEY=%d/key",
                example=True,
            ),
            Line(
                "LoadCredentialEncrypted",
                "secret:/etc/hardserve/%i.secret",
                "For the app to read from $CREDENTIALS_DIRECTORY/secret, encrypted on the disk by systemd-creds. From "
                "systemd 254 on, ImportCredential=hardserve.* takes what the machine was booted with.",
                example=True,
            ),
        ),
        sockets=sockets,
        examples=True,
    )
