"""What a state says to the prompts that a reader is shown, fixed in advance."""

from collections.abc import Callable, Sequence

from steerheal.config import SamplingSettings
from steerheal.models.generate import Draw, generate
from steerheal.models.model import ChatModel
from steerheal.records import Shown
from steerheal.state.values import State


def show(
    chat: ChatModel,
    role: str,
    state: State,
    prompts: Sequence[str],
    *,
    sampling: SamplingSettings,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Shown:
    """Greedy answers: what differs between two states is the state, not the draw.

    Args:
        chat: The model, in no state.
        role: base, steered or healed: what the state is to the run.
        state: Who answers.
        prompts: What is asked.
        sampling: How long an answer may be; its temperature is not read.
        seed: Of the draws.
        progress: Called with the number of answers done.
    """
    greedy = sampling.model_copy(update={"temperature": 0.0})
    draws = [Draw(prompt, seed=seed * 7_919 + i) for i, prompt in enumerate(prompts)]
    with state.entered(chat) as reader:
        said = generate(reader, draws, greedy, keep_broken=True, progress=progress)
    return Shown(state=role, completions=tuple(said))
