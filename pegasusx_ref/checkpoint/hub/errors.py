"""What went wrong with the Hub, and what to do, in a line."""

import errno
from pathlib import Path
from typing import NamedTuple

from pegasusx_ref.errors import reason, shown


class Failure(NamedTuple):
    """A failure of a download.

    Attributes:
        what: went wrong.
        remedy: what to do.
        is_offline_mode: the user switched downloads off.
    """

    what: str
    remedy: str
    is_offline_mode: bool = False


LOGIN = "set HF_TOKEN, pass token=, or run hf auth login"


def explained(error: Exception, name: str, cache: Path, revision: str) -> Failure:
    """Explain an exception of huggingface_hub, of its HTTP library or of the system.

    Args:
        error: the exception.
        name: the name that was looked up.
        cache: the folder of downloaded files.
        revision: of the repository.
    """
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the file could not be downloaded
    endpoint = constants.ENDPOINT
    if isinstance(error, errors.OfflineModeIsEnabled):
        what = "it is not downloaded, and HF_HUB_OFFLINE or local_files_only forbids downloads"
        return Failure(what, "allow them once", is_offline_mode=True)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Failure("token=True, but no token is stored", LOGIN)
    if isinstance(error, errors.GatedRepoError):
        return Failure("a gated model", f"accept its terms at {endpoint}/{name}, then {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        what = f"neither a folder here nor a public model at {endpoint}"
        return Failure(what, f"check the spelling; if it is private, {LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Failure(f"it has no revision {shown(revision)}", f"choose one of {endpoint}/{name}/tree/main")
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error.response.status_code, endpoint)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(f"the disk of {cache} is full", "make room, or set HF_HOME or cache_dir to another disk")
    if isinstance(error, OSError) and error.filename is not None:
        what = f"the cache cannot be written ({error.filename}: {reason(error)})"
        return Failure(what, "set HF_HOME or cache_dir to a folder of yours")
    what = f"there is no such folder here, and {endpoint} cannot be reached or broke off ({reason(error)})"
    return Failure(what, "check the network, then try again: complete files and parts of files are kept")


def _answered(status: int, endpoint: str) -> Failure:
    what = f"{endpoint} answers {status}"
    if status == 429:
        return Failure(f"{what}, too many requests", f"wait some minutes; for a higher limit {LOGIN}")
    if status in (401, 403):
        return Failure(f"{what}, access denied", f"the token may have expired: {LOGIN}")
    return Failure(what, "try again later")
