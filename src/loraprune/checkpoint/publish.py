"""Results on the hub: a target that is checked before a run, and pushed to after it."""

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
"""Files of an earlier push that go where the new one does not have them: loaders would read them."""


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    """The repository on the hub that a result goes to.

    Attributes:
        name: ``owner/name``, or a name under the account of the token.
        private: whether a repository that is made is private; None is the account's default.
        revision: branch to commit to, made where it does not exist; None is the main one.
        token: of the hub; None is that of the environment (``HF_TOKEN``) or of ``hf auth login``.

    Raises:
        ValueError: the hub takes no such name.
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
                f"{self.name!r} is no name of a model on the hub. Give NAME or OWNER/NAME, of letters, digits, '-', "
                "'_' and '.', such as me/my-model."
            ) from error

    def check(self) -> str:
        """Make sure that a push can work: the hub answers, the login may write, and the owner is one of the account's.

        Returns:
            The whole name, with its owner.

        Raises:
            ValueError: it cannot; the message says what to do.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"The result is to be pushed to {self.name}, and the hub is switched off (HF_HUB_OFFLINE). Unset that, "
                "or leave the push out and push later: loraprune push OUT NAME."
            )
        reason = missing_hub()
        if reason is not None:
            raise ValueError(
                f"The result is to be pushed to {self.name}, and {reason}. Push later: loraprune push OUT NAME."
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
        """Upload a folder with all that it holds, or a file with a card, in one commit.

        Weights of an earlier push that the folder does not have are removed.

        Args:
            path: a folder, or a file such as one of GGUF.
            card: of the checkpoint that a file was made from; None is the one beside it.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            WriteError: the hub did not take it.
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
        except Exception as error:  # of the network, of the hub, of the disk: the result is what matters
            raise WriteError(f"The push to {self.name} failed: {reason_of(error)}.") from error
        return str(commit.commit_url)

    def command(self, path: Path) -> str:
        """What to type to push a result."""
        words = ["loraprune", "push", str(path), self.name, *(["--private"] if self.private else [])]
        return shlex.join([*words, *([] if self.revision is None else ["--hub-revision", self.revision])])

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    def _check_private(self, api: HfApi, name: str) -> None:
        """Make sure that a result which is to be private does not go to a public repository.

        Raises:
            ValueError: that repository exists.
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
                f"{name} is a public repository, and --private was given. Make it private on the hub, or name another."
            )

    def _push_file(self, api: HfApi, name: str, path: Path, card: Path, message: str) -> Any:
        """Upload one file; it gets a card where the repository has none."""
        from huggingface_hub import CommitOperationAdd

        uploads = [CommitOperationAdd(path.name, path)]
        beside = path.with_name(f"{path.name}.data")  # of ONNX
        if beside.is_file():
            uploads.append(CommitOperationAdd(beside.name, beside))
        if CARD_FILE not in api.list_repo_files(name, revision=self.revision):
            uploads.append(CommitOperationAdd(CARD_FILE, _card_of_file(path, card).encode()))
        return api.create_commit(name, uploads, commit_message=message, revision=self.revision)


def _account(api: HfApi) -> dict[str, Any]:
    """Whom the token belongs to.

    Raises:
        ValueError: there is no token, or the hub does not take it.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        found: dict[str, Any] = api.whoami()
    except LocalTokenNotFoundError as error:
        raise ValueError(
            "A push needs a login, and there is none: run `hf auth login`, or set HF_TOKEN to a token that may write."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"The hub does not take the login for the push: {reason_of(error)}. Run `hf auth login`, or set HF_TOKEN "
            "to a token that may write."
        ) from error
    return found


def _check_owner(owner: str, account: dict[str, Any]) -> None:
    """Make sure that the account may write under an owner's name, as far as the hub tells.

    Raises:
        ValueError: it may not.
    """
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ValueError(
            f"The token of {account['name']} may only read. Make one that may write, and run `hf auth login` again."
        )
    owners = [account["name"], *(group["name"] for group in account.get("orgs", ()) if _writes(group))]
    if owner not in owners and role != "fineGrained":  # which names its organizations in other ways
        raise ValueError(
            f"The result is to be pushed under {owner}, and the login is that of {account['name']}, who may push under "
            f"{', '.join(owners)}. Name one of these, or run `hf auth login`."
        )


def _writes(group: dict[str, Any]) -> bool:
    return group.get("roleInOrg") != "read"


def _card_of_file(path: Path, card: Path) -> str:
    """A card for a file that is alone in its repository, with what the card of the checkpoint says of the base."""
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
