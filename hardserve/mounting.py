"""Which directories and files a server has to itself: those of its settings, and the static folders of its app.

Main thread, once, before anything listens. What would show the world more than an operator can want, the app's source,
a database or a key, is refused here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hardserve.configfiles import SettingsError
from hardserve.files.exposure import AppFiles, exposed
from hardserve.files.mounts import Mount, Mounts, short_form
from hardserve.http.paths import PathPattern
from hardserve.loader.sources import AppSource, source_of
from hardserve.loader.statics import AppFolder, AppStatic, all_folders, static_directories, static_folders
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.settings import RouteSettings, Settings, StaticSettings

logger = logging.getLogger("hardserve")

WAY_OUT = "nothing of the kind may be in what is served: move it elsewhere, or serve a folder that has none of it"


def mounts_of(app: object, settings: Settings) -> Mounts:
    """Return the mounts of a server with these settings. Raises SettingsError with every problem of those."""
    # It takes a look at every module there is: only where one is asked about.
    app_files = cache(lambda: files_of(source_of(app)))
    configured = list(_configured(settings))
    mounts: list[Mount] = []
    problems: list[str] = []
    for where, static in configured:
        try:
            mounts.append(Mount.from_settings(static))
        except OSError as error:
            problems.append(f"{where}: {error.strerror or error}")
            continue
        found = exposed(Path(static.directory), app_files=app_files())
        problems += [f"{where}: {sentence}" for sentence in found]
        if found:
            problems.append(f"{where}: {WAY_OUT}")
    if problems:
        raise SettingsError(problems)
    _warn_of_rules_for_one_file(settings.route, [static for _, static in configured if static.internal != "on"])
    taken = [static.url for _, static in configured]
    served = [] if settings.files.auto == "off" else list(_of_app(app, taken, app_files, settings.files.auto))
    kept = {static.url for _, static in configured if static.internal != "on"} | {folder.url for folder in served}
    left = [folder for folder in all_folders(app) if folder.url not in kept]
    mounts = [_with_paths_of_app(mount, left) for mount in mounts]
    # What the app's own static view would send, it may also name, wherever links lead: USE_X_SENDFILE makes it do that.
    named = [Mount.of_app("", directory, None, follow_symlinks=True) for directory in static_directories(app)]
    own = [Mount.of_app(folder.url, folder.directory, folder.max_age) for folder in served]
    return Mounts([*mounts, *own], named=[*mounts, *named])


def files_of(source: AppSource) -> AppFiles:
    """Return what must not be among the files that are served."""
    return AppFiles(
        source.files,
        packages=source.packages,
        roots=source.roots,
        templates=source.templates,
        instances=source.instances,
        public=source.public,
    )


def _configured(settings: Settings) -> Iterator[tuple[str, StaticSettings]]:
    """Yield what the operator wants to be served, with how a message about it begins."""
    for text in settings.server.static:
        yield f"static = {show(text)}", short_form(text)
    for index, static in enumerate(settings.static):
        yield f"static[{index}].directory = {show(static.directory)}", static


def _warn_of_rules_for_one_file(routes: Sequence[RouteSettings], statics: Sequence[StaticSettings]) -> None:
    """Say which rules on a file do not hold for all paths that it is sent for: it may be an index, or a fallback."""
    for route in routes:
        directory, _, name = route.path.rpartition("/")
        if name == "off" or not (route.allow or route.deny or route.allowed_methods or route.auth):
            continue
        for static in _around(route.path, statics):
            others = [f"{directory}/"] if name == static.index else []
            # The fallback lies at the root, and a pattern may mean that, too.
            if name == static.fallback and ("*" in directory or directory == static.url.rstrip("/")):
                others.append(f"paths in {static.url} that no file has")
            if others:
                logger.warning(
                    "the rules of the route %s do not hold for %s, where the same file is sent: use path = %s",
                    show(route.path),
                    " and ".join(others),
                    show(f"{directory}/*"),
                )
                break


def _around(path: str, statics: Sequence[StaticSettings]) -> Sequence[StaticSettings]:
    """Return what the operator serves where a path, or a pattern of paths, may be."""
    fixed, star, _ = path.partition("*")
    prefixes = [(f"{static.url.rstrip('/')}/", static) for static in statics]
    inside = [(prefix, static) for prefix, static in prefixes if fixed.startswith(prefix)]
    if star:
        return [static for prefix, static in prefixes if fixed.startswith(prefix) or prefix.startswith(fixed)]
    # Of several, the one with the longest URL has it.
    return [max(inside, key=lambda found: len(found[0]))[1]] if inside else []


def _of_app(app: object, taken: Sequence[str], app_files: Callable[[], AppFiles], auto: str) -> Iterator[AppStatic]:
    """Yield the app's folders that are served in its place, and say which are not."""
    folders, sentences = static_folders(app, always=auto == "always", taken=taken)
    for sentence in sentences:
        logger.info("%s", sentence)
    for folder in folders:
        found = exposed(Path(folder.directory), app_files=app_files())
        for sentence in found:
            logger.warning("%s is left to the app, which may serve that as well: %s; move it", folder.url, sentence)
        if not found:
            yield folder


def _with_paths_of_app(mount: Mount, left: Sequence[AppFolder]) -> Mount:
    """Leave the URLs of folders that the app serves to it: a mount that is wider than they are would hide them."""
    if mount.internal or mount.name:
        return mount
    inside = [folder.paths for folder in left if mount.has_below(folder.paths.partition("*")[0])]
    return dataclasses.replace(mount, app_paths=[*mount.app_paths, *map(PathPattern, inside)])
