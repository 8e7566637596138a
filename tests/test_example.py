"""The method in one file gives the package's vector, barrier and fold."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import steerheal as sh
from steerheal.heal.adapter import untouched
from steerheal.heal.barrier import hinge_weights, position_losses
from steerheal.models.chat import prompt_ids
from steerheal.models.model import ChatModel, band_layers
from steerheal.state.adapter import Adapter

import tiny

# PEFT asks the model by a name that transformers calls deprecated.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
FILE = Path(__file__).parents[1] / "examples" / "loop.py"


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_loop", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def chat(request: pytest.FixtureRequest) -> ChatModel:
    return tiny.chat() if request.param == "tiny" else sh.load(sh.ModelSettings())


@pytest.fixture
def pair(chat: ChatModel) -> tuple[list[int], list[int]]:
    return prompt_ids(chat, "A stranger sits down beside you."), [65, 66, 67, 70, 71, 80]


@contextmanager
def trained(
    loop: ModuleType, chat: ChatModel, pairs: list[tuple[list[int], list[int]]]
) -> Iterator[tuple]:
    """The example's student after a heal; the model is put back."""
    names = [
        name
        for name, module in chat.net.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(tuple(loop.LINEAR))
    ]
    with untouched(chat, names), torch.enable_grad():
        copies = {name: chat.net.get_submodule(name).weight.detach().clone() for name in names}
        try:
            yield loop.heal(chat.net, pairs, epochs=1)
        finally:
            for name, weight in copies.items():
                module = chat.net.get_submodule(name)
                getattr(module, "base_layer", module).weight.data.copy_(weight)


def test_the_vector_is_the_packages(loop: ModuleType, chat: ChatModel) -> None:
    blocks = band_layers(len(chat.blocks), (0.4, 0.6))
    persona = tiny.persona(positive=loop.WARM, negative=loop.COLD)
    theirs = sh.extract(chat, persona, loop.CONTEXTS, sh.VectorSettings(band=(0.4, 0.6))).layers
    ours = loop.extract(chat.net, chat.tokenizer, (loop.WARM, loop.COLD), loop.CONTEXTS, blocks)
    assert ours.keys() == theirs.keys()
    for i, vector in ours.items():
        assert (vector - theirs[i]).square().mean().sqrt() <= 1e-5


def test_steering_is_the_packages_and_leaves_no_hook(
    loop: ModuleType, chat: ChatModel, pair: tuple[list[int], list[int]]
) -> None:
    width = chat.text_config.hidden_size
    vector = {1: torch.randn(width), 2: torch.randn(width)}
    plain = loop.logits(chat.net, *pair)
    with loop.steered(chat.net, vector, 0.7):
        ours = loop.logits(chat.net, *pair)
    with sh.SteeringVector(vector).applied(chat, 0.7):
        theirs = loop.logits(chat.net, *pair)
    assert torch.equal(ours, theirs)
    assert torch.equal(loop.logits(chat.net, *pair), plain) and not torch.equal(ours, plain)


@pytest.mark.parametrize("tau", [0.0, 1e-4, 1e6])
def test_the_objective_and_its_gradient_are_the_packages(
    loop: ModuleType, chat: ChatModel, pair: tuple[list[int], list[int]], tau: float
) -> None:
    before, answer = pair
    ids = torch.tensor([[*before, *answer]])
    reference = chat.hidden(ids)[0, len(before) - 1 : -1].detach()
    states = (reference + 0.05 * reference.std() * torch.randn_like(reference)).requires_grad_(True)
    targets = torch.tensor(answer)

    with torch.enable_grad():
        loss: Tensor = loop.objective(
            chat.logits(states), chat.logits(reference), targets, lam=0.3, tau=tau
        )
        (gradient,) = torch.autograd.grad(loss, states)
    found = position_losses(chat, states.detach(), targets, reference, "kl_rev")
    _, barrier, weights = hinge_weights("rmse", found.divergence, 0.3, tau)
    assert (barrier > 0) == (tau < 1)
    assert loss.item() == pytest.approx(found.fit.mean().item() + barrier, rel=1e-5)
    theirs = found.fit_grad / len(answer) + found.divergence_grad * weights[:, None]
    assert (gradient - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_the_fold_is_the_packages_at_every_gate(
    loop: ModuleType,
    chat: ChatModel,
    pair: tuple[list[int], list[int]],
    gate: float,
    tmp_path: Path,
) -> None:
    plain = loop.logits(chat.net, *pair)
    with trained(loop, chat, [pair, pair]) as student:
        student.save_pretrained(str(tmp_path))
        ours = loop.logits(loop.fold(student, gate), *pair)
    adapter = Adapter.load(tmp_path)
    with sh.folded(chat, [sh.Gated(adapter, gate)]):
        theirs = loop.logits(chat.net, *pair)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert torch.equal(loop.logits(chat.net, *pair), plain)
    assert torch.equal(theirs, plain) == (gate == 0)


def test_the_whole_loop_runs_on_a_tiny_model(
    loop: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "keep", lambda _base, pairs, _limit: pairs)
    loop.main(str(tiny.saved(tmp_path)), rounds=2, draws=1)
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if "log-odds" in line] == [
        "base", "steered", "healed", "steered", "healed",
    ]  # fmt: skip


def test_the_filter_keeps_what_the_base_can_follow_and_drops_loops(loop: ModuleType) -> None:
    chat = tiny.chat()
    before = prompt_ids(chat, "x")
    loops, plain = [65, 66, 67] * 8, list(range(40, 64))
    assert loop.keep(chat.net, [(before, plain)], 1e6) == [(before, plain)]
    assert loop.keep(chat.net, [(before, loops)], 1e6) == []
    assert loop.keep(chat.net, [(before, plain)], 0.0) == []
    assert loop.keep(chat.net, [(before, plain[:8])], 1e6) == []


def test_it_uses_nothing_of_the_package_and_stays_short() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "import steerheal" not in text and "from steerheal" not in text
    code = [line for line in text.splitlines() if line.strip()]
    assert len(code) <= 145, f"{len(code)} lines: a page to read, not a library"
