"""Files of a model that lie in a folder, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ciuic_dist.config import ConfigError

commits: dict[str, str] = {}
"""Of each hub id, the commit that this process uses. Ranks that can't all reach the hub may differ in it."""


class Repository:
    """The files of a folder, or of a hub id, which are fetched into the hub's cache as they are asked for.

    ``config`` is its config.json. Where HF_HUB_OFFLINE is set, what the cache has of the commit is all there is.
    Raises ConfigError where the hub refuses.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = Path(path) if Path(path).is_dir() else None
        self.config = self.find("config.json")
        if self._folder is None and self.config is not None:
            from huggingface_hub import is_offline_mode

            self._folder = self.config.parent if is_offline_mode() else None

    @property
    def revision(self) -> str | None:
        """The commit that all files are of: the hub's main branch when this process first asked; None for a folder."""
        return commits.get(self._path)

    def __str__(self) -> str:
        return str(self._folder or self._path)

    def find(self, name: str) -> Path | None:
        """The file ``name``; None where there is none, as the hub itself has said. Raises ConfigError."""
        if self._folder is None:
            return self._fetched(name)
        file = self._folder / name
        return file if file.is_file() else None

    def _fetched(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError

        if self.revision is not None:
            known = try_to_load_from_cache(self._path, name, revision=self.revision)
            if known is not None:
                return Path(known) if isinstance(known, str) else None  # known too: that there is none
        try:
            found = Path(hf_hub_download(self._path, name, revision=self.revision))
        except RemoteEntryNotFoundError:
            return None
        except Exception as error:  # the hub's own, its HTTP library's and the disk's
            raise ConfigError(_refusal(self._path, name, error)) from error
        commits[self._path] = found.parent.name  # the cache has a folder for each
        return found


def _refusal(path: str, name: str, error: Exception) -> str:
    """Why a file couldn't be fetched, and what to do, in a line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    cause = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
    match cause:
        case HFValidationError():
            return f"{path} is neither a folder nor a hub id such as org/name"
        case GatedRepoError():
            return f"{path} is gated: ask for access at {hub}/{path}, then log in with hf auth login, or set HF_TOKEN"
        case RepositoryNotFoundError():
            return (
                f"{path} is neither a folder nor a repository that {hub} shows you: check the name; for a private one "
                "log in with hf auth login, or set HF_TOKEN"
            )
        case OfflineModeIsEnabled():
            return f"{name} of {path} isn't in {cache}, and HF_HUB_OFFLINE keeps it from being fetched: unset it"
        case OSError(errno=int()):
            return f"{name} of {path} can't be stored in {cache} ({cause}): HF_HOME says where else"
    reason = str(cause).strip().partition("\n")[0]
    return (
        f"{name} of {path} couldn't be fetched from {hub}: {reason}. Check the network, HF_ENDPOINT where it is set, "
        "and your token (hf auth whoami); HF_HUB_OFFLINE=1 makes do with the cache"
    )
