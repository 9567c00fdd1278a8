"""A model's name on the Hugging Face hub: tried with one request, before anything is fetched.

The hub's client tries each of a model's files again for half a minute where there is no network.
Here the name is asked for once; what cannot be had is refused in seconds, and what lies in the
cache is served from there without asking again.
"""

from __future__ import annotations

import logging
import os

from saccade_server.models.folder import CONFIG, HUB_HELP, UnsupportedModelError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
OFFLINE = "HF_HUB_OFFLINE"
HF_TOKEN_HELP = "if it is private or asks for consent, set HF_TOKEN"


def check_hub(model: str) -> None:
    """Refuse a name that the hub does not know, or that nothing can be fetched for.

    Without an answer, files of an earlier start are looked for; if there are any, this process and
    those that it starts ask the hub for nothing more.

    Raises:
        UnsupportedModelError: with the reason and what helps.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    why = f"{constants.ENDPOINT} does not answer"
    try:
        HfApi().model_info(model, timeout=TIMEOUT_SECONDS)
        return
    except HFValidationError:
        raise UnsupportedModelError(
            f"{model}: it is no folder here, and no name on the Hugging Face hub, which is "
            "OWNER/NAME; check it, or name the model's folder"
        ) from None
    except GatedRepoError:
        raise UnsupportedModelError(
            f"{model}: its owner on the Hugging Face hub asks for consent first; give it there, "
            "then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UnsupportedModelError(
            f"{model}: it is no folder here, and the Hugging Face hub has no model of this name; "
            f"check the name, or {HF_TOKEN_HELP}"
        ) from None
    except OfflineModeIsEnabled:
        why = f"{OFFLINE} is set"
    except Exception as error:  # of the network, of a proxy, of what stands in the hub's place
        logger.debug("%s: %s", model, error)
    if not isinstance(try_to_load_from_cache(model, CONFIG), str):
        raise UnsupportedModelError(f"{model}: {HUB_HELP} ({why})")
    if os.environ.get(OFFLINE) != "1":
        logger.warning("%s: %s; it is served from the cache", model, why)
    os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True
