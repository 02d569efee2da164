"""Upload of results to the Hub: the repository is checked before a run and written after it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.checkpoint.reading import reason_of
from loraprune.data.hub import missing_hub
from loraprune.record.places import WriteError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"
_STALE = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
"""Files of an earlier push to delete if the new one lacks them, because loaders would read them."""


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    """The Hub repository for a result.

    Attributes:
        name: ``owner/name``, or a name under the account of the token.
        private: whether a new repository is private; None is the account's default.
        revision: branch to commit to, created if it does not exist; None is the main branch.
        token: Hub token; None is that of ``HF_TOKEN`` or of ``hf auth login``.

    Raises:
        ValueError: the name is not valid on the Hub.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise ValueError(
                f"{self.name!r} is not a valid name for a model on the Hub. Give NAME or OWNER/NAME, of letters, "
                "digits, '-', '_' and '.', such as me/my-model."
            ) from error

    def check(self) -> str:
        """Make sure that a push can work: the Hub answers, and the login may write under the owner.

        Returns:
            The full name, ``owner/name``.

        Raises:
            ValueError: a push cannot work; the message says what to do.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"The result cannot be pushed to {self.name}: HF_HUB_OFFLINE is set. Unset it, or push later: "
                "loraprune push OUT NAME."
            )
        reason = missing_hub()
        if reason is not None:
            raise ValueError(
                f"The result cannot be pushed to {self.name}: {reason}. Push later: loraprune push OUT NAME."
            )
        api = self._api()
        account = _account(api)
        owner, _, name = self.name.rpartition("/")
        owner = owner or str(account["name"])
        _check_owner(owner, account)
        self._check_private(api, f"{owner}/{name}")
        return f"{owner}/{name}"

    def push(
        self, path: Path, *, card: Path | None = None, message: str = "Upload a model pruned with loraprune"
    ) -> str:
        """Upload a folder, or a file with a model card, in one commit.

        Weights of an earlier push that the folder lacks are deleted.

        Args:
            path: a folder, or a file such as a GGUF file.
            card: model card of the checkpoint that the file was made from; None is the one beside the file.
            message: commit message.

        Returns:
            URL of the commit.

        Raises:
            WriteError: the push failed.
        """
        try:
            api = self._api()
            name = str(api.create_repo(self.name, private=self.private, exist_ok=True).repo_id)
            self._check_private(api, name)
            if self.revision is not None:
                api.create_branch(name, branch=self.revision, exist_ok=True)
            if path.is_dir():
                commit = api.upload_folder(
                    repo_id=name,
                    folder_path=path,
                    commit_message=message,
                    revision=self.revision,
                    delete_patterns=list(_STALE),
                )
            else:
                commit = self._push_file(api, name, path, card or path.with_name(CARD_FILE), message)
        except Exception as error:  # whatever fails (network, Hub, disk), the result on disk stays
            raise WriteError(f"The push to {self.name} failed: {reason_of(error)}.") from error
        return str(commit.commit_url)

    def command(self, path: Path) -> str:
        """Return the command that pushes a result."""
        words = ["loraprune", "push", str(path), self.name, *(["--private"] if self.private else [])]
        return shlex.join([*words, *([] if self.revision is None else ["--hub-revision", self.revision])])

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    def _check_private(self, api: HfApi, name: str) -> None:
        """Make sure that a private push does not go to a public repository.

        Raises:
            ValueError: the repository exists and is public.
        """
        if not self.private:
            return
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            public = not api.repo_info(name).private
        except RepositoryNotFoundError:
            return
        if public:
            raise ValueError(
                f"{name} is a public repository, but --private was given. Make it private on the Hub, or name another."
            )

    def _push_file(self, api: HfApi, name: str, path: Path, card: Path, message: str) -> Any:
        """Upload one file, with a model card if the repository has none."""
        from huggingface_hub import CommitOperationAdd

        uploads = [CommitOperationAdd(path.name, path)]
        beside = path.with_name(f"{path.name}.data")  # of ONNX
        if beside.is_file():
            uploads.append(CommitOperationAdd(beside.name, beside))
        if CARD_FILE not in api.list_repo_files(name, revision=self.revision):
            uploads.append(CommitOperationAdd(CARD_FILE, _card_of_file(path, card).encode()))
        return api.create_commit(name, uploads, commit_message=message, revision=self.revision)


def _account(api: HfApi) -> dict[str, Any]:
    """Return the account of the token.

    Raises:
        ValueError: there is no token, or the Hub rejects it.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        found: dict[str, Any] = api.whoami()
    except LocalTokenNotFoundError as error:
        raise ValueError(
            "A push needs a login. Run `hf auth login`, or set HF_TOKEN to a token with write access."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"The Hub rejects the login: {reason_of(error)}. Run `hf auth login`, or set HF_TOKEN to a token with "
            "write access."
        ) from error
    return found


def _check_owner(owner: str, account: dict[str, Any]) -> None:
    """Make sure that the account may write under an owner, as far as the Hub reports it.

    Raises:
        ValueError: the account may not write there.
    """
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"The token of {account['name']} has read access only. Create one with write access, and run "
            "`hf auth login` again."
        )
    owners = [account["name"], *(group["name"] for group in account.get("orgs", ()) if _writes(group))]
    if owner not in owners and role != "fineGrained":  # a fine-grained token lists its organizations elsewhere
        raise ValueError(
            f"The result cannot be pushed under {owner}: the login is {account['name']}, who may push under "
            f"{', '.join(owners)}. Name one of these, or run `hf auth login`."
        )


def _writes(group: dict[str, Any]) -> bool:
    return group.get("roleInOrg") != "read"


def _card_of_file(path: Path, card: Path) -> str:
    """Return a model card for a single file, with license, base model and tags from the checkpoint's card."""
    from huggingface_hub import ModelCard

    given: dict[str, Any] = {}
    if card.is_file():
        data: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        given = data.to_dict()
    kept = {
        name: value for name, value in given.items() if name.startswith(("license", "base_model")) or name == "tags"
    }
    kind = path.suffix.removeprefix(".")
    metadata = {**kept, "library_name": kind, "tags": [*kept.get("tags", ["loraprune"]), kind]}
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n# {path.name}\n\nA {kind.upper()} file that `loraprune export` wrote.\n"
