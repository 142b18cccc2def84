"""Upload of files to a model repository of the Hugging Face Hub."""

from importlib.util import find_spec

from soda_dist.errors import MachineError, UserError

FORBIDDEN = (401, 403)
CARD_REFUSED = "Invalid metadata in README.md"
"""Begins the message of huggingface_hub for a card that the Hub's own check refuses, before anything is uploaded."""


def check_push(repository: str) -> None:
    """Raise a `UserError` for a missing package, a name that is not OWNER/NAME, or missing credentials.

    The token is that of huggingface_hub: the variable HF_TOKEN, or what `hf auth login` stored.
    """
    if find_spec("huggingface_hub") is None:
        remedy = "pip install 'soda_dist[hub]'"
        raise UserError("--push", "no package huggingface_hub", "an environment with it", remedy)
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository, valid = f"{repository[:100]!r}", False
    else:
        valid = "/" in repository
    if not valid:
        raise UserError("--push", repository, "OWNER/NAME of a model on the Hub", "correct the name")
    if get_token() is None:
        got = f"{repository} without credentials"
        raise UserError("--push", got, "a token in HF_TOKEN or of `hf auth login`", "log in, or leave out --push")


def push(repository: str, files: dict[str, bytes]) -> str:
    """Commit the files to the repository, made private if it does not exist; return its URL.

    Raises:
        UserError: the Hub refuses the credentials or the files.
        MachineError: the Hub cannot be reached, or failed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, operations, commit_message="Add model by soda_dist")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in FORBIDDEN:
            got = f"{repository}, refused with HTTP status {status}"
            raise UserError("--push", got, "a repository that the token may write to", "check both") from None
        raise MachineError(f"--push: HTTP status {status} from {api.endpoint}; rerun later") from None
    except (HTTPError, OSError, RuntimeError) as error:
        raise MachineError(f"--push: {api.endpoint} failed ({type(error).__name__}); rerun later") from None
    except ValueError as error:
        if not str(error).startswith(CARD_REFUSED):
            raise
        got = f"a model card that the Hub refuses ({str(error).removeprefix(CARD_REFUSED)[:200]})"
        raise UserError("--push", got, "a valid card", "check --license") from None
    return str(url)
