"""An app with a mistake: what it imports is not there."""

import package_that_nobody_has_installed  # noqa: F401
