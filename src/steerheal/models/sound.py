"""Checks of a loaded model that cost little and spare a traceback, or nonsense, later."""

from collections.abc import Callable

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerheal.errors import UserError, first_line
from steerheal.models.model import ChatModel
from steerheal.models.weights import vocabulary

PROBES = ("steerheal-first-probe", "steerheal-second-probe")
"""Two messages of one user; a sound template prints each."""


def refuse_template(ask: Callable[[str], str], name: str) -> None:
    """The template must print what a user says.

    Args:
        ask: A user's message as the template prints it, up to where the answer begins.
        name: The model's, for messages.

    Raises:
        UserError: it does not parse, raises, prints nothing, or ignores the message.
    """
    what = f"The chat template of {name}"
    advice = "Give a sound one with --model.template FILE."
    try:
        printed = [ask(probe) for probe in PROBES]
    except TemplateSyntaxError as error:
        raise UserError(f"{what} does not parse: {first_line(error)} {advice}") from error
    except TemplateError as error:
        raise UserError(
            f"{what} refuses a plain user's message: {first_line(error)} {advice}"
        ) from error
    except Exception as error:
        raise UserError(
            f"{what} fails on a plain user's message: {type(error).__name__}: "
            f"{first_line(error)} {advice}"
        ) from error
    if not printed[0].strip():
        raise UserError(f"{what} prints nothing for a user's message. {advice}")
    if any(probe not in text for probe, text in zip(PROBES, printed, strict=True)):
        raise UserError(
            f"{what} prints {_cut(printed[0])!r} whatever the user says. {advice}"
            if printed[0] == printed[1]
            else f"{what} does not print the user's message as it is. {advice}"
        )


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def refuse_vocabulary(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Every token must have a row in the embedding and in the head.

    A named token may lie beyond, if it neither begins nor ends a text: padding, the unknown, what
    stands for an image. Only a text that spells it out would need it.

    Raises:
        UserError: the tokenizer has tokens that the model has not.
    """
    rows = vocabulary(net)
    named = tokenizer.special_tokens_map.items()
    spared = {str(word) for key, word in named if key not in {"bos_token", "eos_token"}}
    beyond = {
        word: i for word, i in tokenizer.get_vocab().items() if i >= rows and word not in spared
    }
    if beyond:
        word, last = max(beyond.items(), key=lambda item: item[1])
        raise UserError(
            f"The tokenizer of {name} has {len(beyond)} tokens that the model has no weights for "
            f"({word!r} is {last}, the model's last is {rows - 1}). Take the tokenizer that "
            "belongs to these weights, or enlarge the model's embeddings and train them."
        )


@torch.no_grad()
def refuse_head(chat: ChatModel) -> None:
    """The head applied to the decoder's output must give the model's own logits.

    Raises:
        UserError: it gives others.
    """
    ids = torch.tensor([[chat.end_of_turn()] * 3], device=chat.device)
    whole = chat.net(input_ids=ids).logits.float()
    ours = chat.logits(chat.hidden(ids))
    seen = whole.isfinite()
    gap = (whole - ours)[seen].abs().max().item()
    scale = whole[seen].abs().max().item()
    if not gap <= 1e-2 * max(1.0, scale):
        raise UserError(
            f"{chat.name} ({type(chat.net).__name__}) treats its logits in a way that is not "
            f"supported (largest difference {gap:.3g})."
        )
