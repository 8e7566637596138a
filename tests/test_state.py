"""States: one value, one door, and what their rows read beside each other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from steerheal.config import HealSettings
from steerheal.errors import UserError
from steerheal.heal.adapter import target_names
from steerheal.models.asking import asked
from steerheal.models.chat import prompt_ids
from steerheal.models.decode import Decoding
from steerheal.models.hooks import adding, hook_count
from steerheal.models.model import ChatModel
from steerheal.models.rows import Line
from steerheal.state.adapter import Adapter
from steerheal.state.factors import Pair
from steerheal.state.fold import Gated, folded
from steerheal.state.formulas import MASKED, contrast, plausible
from steerheal.state.room import Opened
from steerheal.state.values import Plain, State, base, entered
from steerheal.state.vector import SteeringVector

import tiny

ASKS = ["a", "some longer prompt than the first", "mid size"]
REST = [101, 32, 98, 7, 55]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def vector(seed: int = 0, layers: Sequence[int] = (1, 2)) -> SteeringVector:
    source = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(32, generator=source) for layer in layers})


def linear(chat: ChatModel, name: str) -> nn.Linear:
    return cast(nn.Linear, chat.net.get_submodule(name))


def adapter(chat: ChatModel, seed: int = 0, rank: int = 3) -> Adapter:
    source = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in target_names(chat, HealSettings()):
        out, inner = linear(chat, name).weight.shape
        pairs[name] = Pair(
            0.3 * torch.randn(rank, inner, generator=source),
            0.3 * torch.randn(out, rank, generator=source),
        )
    return Adapter(pairs, 0.5, rank)


def read(reader: ChatModel, states: Sequence[int] = (0,)) -> Tensor:
    """Logits [B, T, V] at every token of an answer, cached, for every ask in every state."""
    lines = [asked(reader, ask, state=state) for state in states for ask in ASKS]
    batch = Decoding(reader, lines)
    found = [batch.start()[:, -1:]]
    for token in REST:
        found.append(batch.on(torch.full((len(lines), 1), token)))
    return reader.logits(torch.cat(found, dim=1))


@torch.no_grad()
def plainly(chat: ChatModel, system: str = "", asks: Sequence[str] = ASKS) -> Tensor:
    """The same of the model as it stands: each ask alone, read whole."""
    found = []
    for ask in asks:
        ids = [*prompt_ids(chat, ask, system=system), *REST]
        hidden = chat.hidden(torch.tensor([ids]))[0, -len(REST) - 1 :]
        found.append(chat.logits(hidden))
    return torch.stack(found)


@torch.no_grad()
def weights(chat: ChatModel) -> list[Tensor]:
    return [weight.clone() for weight in chat.net.parameters()]


def same(chat: ChatModel, before: list[Tensor]) -> bool:
    pairs = zip(chat.net.parameters(), before, strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and hook_count(chat.net) == 0


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_the_base_state_is_the_model_bit_for_bit(family: str) -> None:
    chat = tiny.chat(family)
    with base().entered(chat) as reader:
        assert hook_count(chat.net) == 0
        assert torch.equal(read(reader), read(chat))
    torch.testing.assert_close(read(chat), plainly(chat), **CLOSE)


def test_a_steered_state_is_what_the_hooks_give() -> None:
    chat, v = tiny.chat(), vector()
    with base().steered(v, 0.7).entered(chat) as reader:
        found = read(reader)
        at_rest = plainly(reader)
    with adding(chat, v.layers, 0.7):
        assert torch.equal(at_rest, plainly(chat))
        torch.testing.assert_close(found, plainly(chat), **CLOSE)


def test_a_folded_state_is_what_folding_gives_and_a_negative_gate_takes_away() -> None:
    chat = tiny.chat()
    one, two = adapter(chat, 1), adapter(chat, 2)
    with base().folded(one).folded(two, -0.5).entered(chat) as reader:
        found = plainly(reader)
    with folded(chat, [Gated(one), Gated(two, -0.5)]):
        assert torch.equal(found, plainly(chat))
    plain = plainly(chat)
    with base().folded(one).folded(one, -1.0).entered(chat) as reader:
        torch.testing.assert_close(plainly(reader), plain, atol=1e-5, rtol=1e-5)
    with base().folded(one, -1.0).entered(chat) as reader:
        layer = next(iter(one.pairs))
        inside = linear(chat, layer).weight.clone()
    torch.testing.assert_close(inside, linear(chat, layer).weight - one.delta(layer))


def test_leaving_restores_everything_even_when_entering_or_reading_fails() -> None:
    chat = tiny.chat()
    before = weights(chat)
    good = base().folded(adapter(chat)).steered(vector(), 1.0)
    with good.entered(chat) as reader:
        read(reader)
        assert not same(chat, before)
    assert same(chat, before)
    with pytest.raises(RuntimeError, match="inside"), good.entered(chat):
        raise RuntimeError("inside")
    assert same(chat, before)
    far = good.steered(vector(layers=(1, 99)), 1.0)
    with pytest.raises(UserError, match="does not fit"), far.entered(chat):
        pass
    assert same(chat, before)
    other = base().folded(Adapter({"nowhere": Pair(torch.ones(1, 2), torch.ones(2, 1))}, 1.0, 1))
    with pytest.raises(UserError, match="does not fit"), entered(chat, [good, other]):
        pass
    assert same(chat, before)


def several(chat: ChatModel) -> list[State]:
    v, w, one, two = vector(), vector(5, (2, 3)), adapter(chat, 1), adapter(chat, 2)
    return [
        base(),
        base().steered(v, 0.5),
        base().steered(v, -1.5).steered(w, 0.25),
        base().folded(one),
        base().folded(one, 0.5).folded(two, -1.0).prompted("You are warm."),
        base().steered(w, 1.0).acting_from(2).prompted("Be brief, please."),
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_states_in_one_batch_read_as_each_alone(family: str) -> None:
    chat = tiny.chat(family)
    states = several(chat)
    with entered(chat, states) as reader:
        together = read(reader, range(len(states))).unflatten(0, (len(states), len(ASKS)))
    for state, found in zip(states, together, strict=True):
        with state.entered(chat) as alone:
            torch.testing.assert_close(found, read(alone), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(together[0], plainly(chat), atol=1e-3, rtol=1e-3)


def test_a_system_prompt_is_read_before_everything_that_is_asked() -> None:
    for template in (tiny.CHATML, tiny.NO_SYSTEM + tiny.CHATML):
        chat = tiny.chat(template=template)
        with base().prompted("You are warm.").entered(chat) as reader:
            found = read(reader)
        torch.testing.assert_close(found, plainly(chat, "You are warm."), **CLOSE)
        assert (found - plainly(chat)).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_vector_acts_from_a_token_on_and_leaves_the_earlier_ones(family: str, start: int) -> None:
    chat, v = tiny.chat(family), vector()
    state = base().steered(v, 1.0).acting_from(start)
    with state.entered(chat) as reader:
        cached = read(reader)
        lines = [asked(reader, ask) for ask in ASKS]
        whole = []
        for line in lines:
            acting = reader.acting([line])
            hidden = reader.hidden(torch.tensor([[*line.parts[0], *REST]]), acting)
            whole.append(reader.logits(hidden[0, -len(REST) - 1 :]))
    torch.testing.assert_close(cached, torch.stack(whole), atol=1e-3, rtol=1e-3)
    plain = plainly(chat)
    torch.testing.assert_close(cached[:, :start], plain[:, :start], **CLOSE)
    assert ((cached - plain)[:, start:].abs().amax(-1) > 1e-3).all()
    with base().steered(v, 1.0).entered(chat) as reader:
        assert (read(reader) - cached).abs().max() > 1e-3


def heads(kind: str) -> ChatModel:
    chat = tiny.chat({"capped": "gemma2", "biased": "phi"}.get(kind, "llama"))
    if kind == "tied":
        chat.net.get_output_embeddings().weight = chat.net.get_input_embeddings().weight
    if kind == "biased":
        assert chat.net.get_output_embeddings().bias.abs().max() > 0
    if kind == "capped":
        assert chat.text_config.final_logit_softcapping
    return chat


def uncapped(chat: ChatModel, logits: Tensor) -> Tensor:
    cap = getattr(chat.text_config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh((logits / cap).double())


def capped(chat: ChatModel, logits: Tensor) -> Tensor:
    cap = getattr(chat.text_config, "final_logit_softcapping", None)
    return (logits if cap is None else cap * torch.tanh(logits / cap)).float()


def three(chat: ChatModel, kind: str) -> tuple[State, State, State]:
    v, one, two = vector(), adapter(chat, 1), adapter(chat, 2)
    return {
        "doses": (base(), base().steered(v, 0.5), base().steered(v, -0.5)),
        "prompts": (
            base(),
            base().prompted("You are warm."),
            base().prompted("You are very cold!"),
        ),
        "histories": (base().folded(one, 0.5), base().folded(one), base().folded(two, 0.3)),
    }[kind]


@pytest.mark.long
@pytest.mark.parametrize("head", ["plain", "tied", "biased", "capped"])
@pytest.mark.parametrize("kind", ["doses", "prompts", "histories"])
def test_a_contrast_is_the_formula_of_three_forwards(head: str, kind: str) -> None:
    chat = heads(head)
    states = three(chat, kind)
    alone = []
    for state in states:
        with state.entered(chat) as reader:
            alone.append(uncapped(chat, plainly(reader, getattr(state, "system", ""))))
    for beta in (0.5, 1.5):
        wanted = capped(chat, alone[0] + beta * (alone[1] - alone[2]))
        with contrast(*states, beta).entered(chat) as reader:
            assert reader.parts == 3
            torch.testing.assert_close(read(reader), wanted, atol=2e-3, rtol=1e-3)


def test_a_contrast_without_weight_or_without_difference_is_its_base() -> None:
    chat = tiny.chat()
    of, plus, minus = three(chat, "doses")
    with of.entered(chat) as reader:
        plain = read(reader)
    for made in (contrast(of, plus, minus, 0.0), contrast(of, plus, plus, 3.0)):
        with made.entered(chat) as reader:
            torch.testing.assert_close(read(reader), plain, atol=1e-5, rtol=1e-5)
    with contrast(of, plus, plus, 3.0).entered(chat) as reader:
        assert reader.parts == 2, "equal parts are read once"


@pytest.mark.parametrize("epsilon", [0.2, 0.5, 1.0])
def test_a_mask_leaves_what_its_judge_finds_plausible(epsilon: float) -> None:
    chat = tiny.chat()
    of, by = base().steered(vector(), 2.0), base().prompted("You are warm.")
    with of.entered(chat) as reader:
        own = read(reader)
    with by.entered(chat) as reader:
        judged = read(reader).softmax(-1)
    with plausible(of, by, epsilon).entered(chat) as reader:
        found = read(reader)
    stays = judged >= epsilon * judged.amax(-1, keepdim=True)
    assert stays.sum(-1).min() > 0 and not stays.all()
    assert (found == MASKED).eq(~stays).float().mean() > 0.999  # a tie at the edge may round over
    both = stays & (found != MASKED)
    torch.testing.assert_close(found[both], own[both], atol=1e-3, rtol=1e-3)
    assert (found.softmax(-1)[~stays & (found == MASKED)] == 0).all()


def test_a_mask_with_nothing_asked_is_the_state_and_masks_stand_on_contrasts() -> None:
    chat = tiny.chat()
    of, plus, minus = three(chat, "doses")
    teacher = contrast(of, plus, minus, 0.5)
    with teacher.entered(chat) as reader:
        plain = read(reader)
    with plausible(teacher, of, 0.0).entered(chat) as reader:
        assert reader.parts == 3, "the judge is one of the contrast's own"
        torch.testing.assert_close(read(reader), plain, atol=1e-5, rtol=1e-5)
    with plausible(teacher, of, 0.1).entered(chat) as reader:
        masked = read(reader)
    stays = masked != MASKED
    torch.testing.assert_close(masked[stays], plain[stays], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="without a mask"):
        contrast(plausible(of, of, 0.1), plus, minus, 0.5)
    with pytest.raises(UserError, match="share"):
        plausible(of, of, 1.5)
    with pytest.raises(UserError, match="finite"):
        contrast(of, plus, minus, float("nan"))


def test_composed_states_of_several_doses_share_a_batch() -> None:
    chat = tiny.chat()
    whole = contrast(*three(chat, "doses"), 0.5)
    states = [whole.at_dose(dose) for dose in (1.0, 0.25, 2.0)]
    assert [state.dose for state in states] == [1.0, 0.25, 2.0]
    with entered(chat, states) as reader:
        together = read(reader, range(3)).unflatten(0, (3, len(ASKS)))
    for state, found in zip(states, together, strict=True):
        with state.entered(chat) as alone:
            torch.testing.assert_close(found, read(alone), atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="made the same way"), entered(chat, [whole, base()]):
        pass


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_of_composed_states_are_kept_repeated_taken_back_and_read_again(family: str) -> None:
    chat = tiny.chat(family)
    state = contrast(*three(chat, "prompts"), 0.5).steered(vector(), 0.6)
    with state.entered(chat) as reader:
        wanted = read(reader)
        lines = [asked(reader, ask) for ask in ASKS]
        batch = Decoding(reader, lines)
        batch.start()
        batch.on(torch.tensor([[9], [9], [9]]))
        batch.take_back([1, 1, 1])
        batch.select(torch.tensor([2, 0]))
        batch.repeat(2)
        step = batch.on(torch.full((4, 1), REST[0]), scales=[0.0] * 4)
        step = batch.again()
        rest = batch.on(torch.tensor([REST[1:]] * 4))
        found = reader.logits(torch.cat([step, rest], dim=1))
    torch.testing.assert_close(found, wanted[[2, 2, 0, 0], 1:], atol=1e-3, rtol=1e-3)


def test_a_state_inside_a_state_is_refused() -> None:
    chat = tiny.chat()
    with base().entered(chat) as reader:
        assert isinstance(reader, Opened)
        with pytest.raises(UserError, match="in a state already"), base().entered(reader):
            pass


def test_a_key_knows_every_part_of_a_state_and_nothing_else() -> None:
    chat = tiny.chat()
    v, one = vector(), adapter(chat)
    plain = base().folded(one, 0.5).steered(v, 1.0).prompted("You are warm.").acting_from(2)
    again = Plain((Gated(adapter(chat), 0.5),), ((vector(), 1.0),), "You are warm.", 2, "a pole")
    assert plain == again and plain.key == again.key and hash(plain) == hash(again)
    changed = [
        replace(plain, history=()),
        replace(plain, history=(Gated(one, -0.5),)),
        replace(plain, history=(Gated(adapter(chat, 9), 0.5),)),
        replace(plain, vectors=((v, 2.0),)),
        replace(plain, vectors=((vector(9), 1.0),)),
        replace(plain, vectors=((SteeringVector(v.layers, "ablation"), 1.0),)),
        replace(plain, system="You are cold!"),
        replace(plain, acts_from=None),
        replace(plain, acts_from=0),
        contrast(plain, plain, base(), 0.5),
        contrast(plain, base(), plain, 0.5),
        contrast(plain, plain, base(), 0.25),
        plausible(plain, base(), 0.1),
        plausible(base(), plain, 0.1),
        plausible(plain, base(), 0.2),
    ]
    assert len({state.key for state in (plain, *changed)}) == len(changed) + 1


def test_states_are_called_what_they_are() -> None:
    chat = tiny.chat()
    v, one = vector(), adapter(chat)
    assert base().name == "base"
    assert base().steered(v, 1.5).name == "steered 1.5"
    healed = base().folded(one).folded(one)
    assert healed.name == "healed round 2"
    assert base().folded(one, 0.5).name == "healed round 1, gate 0.5"
    assert base().prompted("You are warm.", "positive pole").name == "system prompt: positive pole"
    assert base().prompted("x" * 80).name == "system prompt: " + "x" * 40 + "…"
    odd = contrast(base(), base().steered(v, 1.0), base().steered(v, -1.0), 0.5)
    assert odd.name == "(base) + 0.5·[(steered 1) − (steered -1)]"
    assert odd.dose == 1.0 and odd.at_dose(2.0).name == "(base) + 0.5·[(steered 2) − (steered -2)]"
    with pytest.raises(UserError, match="no dose"):
        base().at_dose(1.0)


def test_plain_tokens_are_a_line_of_every_part() -> None:
    line = Line.of([1, 2, 3], state=1).then([4])
    assert line.parts == ((1, 2, 3, 4),) and line.begins == (3,) and len(line) == 4
    assert line.spread(2).parts == ((1, 2, 3, 4),) * 2
    with pytest.raises(AssertionError, match="parts"):
        line.spread(2).spread(3)
