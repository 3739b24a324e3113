"""Which directories and files a server has to itself: those of its settings, and the static folders of its app.

Main thread, once, before anything listens. What would show the world more than an operator can want, the app's source,
a database or a key, is refused here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hardserve.configfiles import SettingsError
from hardserve.files.exposure import exposed
from hardserve.files.mounts import Mount, Mounts, short_form
from hardserve.loader.statics import source_files, static_folders
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.settings import Settings, StaticSettings

logger = logging.getLogger("hardserve")

WAY_OUT = "nothing of the kind may be in what is served: move it elsewhere, or serve a folder that has none of it"


def mounts_of(app: object, settings: Settings) -> Mounts:
    """Return the mounts of a server with these settings. Raises SettingsError with every problem of those."""
    app_files = source_files(app)
    mounts: list[Mount] = []
    problems: list[str] = []
    for where, static in _configured(settings):
        directory = Path(static.directory)
        try:
            mounts.append(Mount.from_settings(static))
        except OSError as error:
            problems.append(f"{where}: {error.strerror or error}")
            continue
        found = exposed(directory, app_files=app_files)
        problems += [f"{where}: {sentence}" for sentence in found]
        if found:
            problems.append(f"{where}: {WAY_OUT}")
    if problems:
        raise SettingsError(problems)
    if settings.files.auto != "off":
        taken = {mount.url for mount in mounts}
        mounts += _of_app(app, taken, app_files, always=settings.files.auto == "always")
    return Mounts(mounts)


def _configured(settings: Settings) -> Iterator[tuple[str, StaticSettings]]:
    """Yield what the operator wants to be served, with how a message about it begins."""
    for text in settings.server.static:
        yield f"static = {show(text)}", short_form(text)
    for index, static in enumerate(settings.static):
        yield f"static[{index}].directory = {show(static.directory)}", static


def _of_app(app: object, taken: set[str], app_files: list[Path], *, always: bool) -> Iterator[Mount]:
    folders, sentences = static_folders(app, always=always)
    for sentence in sentences:
        logger.info("%s", sentence)
    for folder in folders:
        mount = Mount.of_app(folder.url, folder.directory, folder.max_age)
        if mount.url in taken:
            continue
        found = exposed(Path(folder.directory), app_files=app_files)
        for sentence in found:
            logger.warning("%s is left to the app, which may serve that as well: %s; move it", folder.url, sentence)
        if not found:
            yield mount
