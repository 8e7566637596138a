"""Open sets: one table each, and what this file adds to them without touching the package."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import test_loop
from steerheal.cli import main
from steerheal.config import (
    HealSettings,
    MeasureSettings,
    RunConfig,
    VectorSettings,
    merge,
    resolve,
    validated,
)
from steerheal.errors import UserError
from steerheal.heal.barrier import position_losses
from steerheal.measure.instrument import Read
from steerheal.measure.vignettes import Vignette
from steerheal.models.model import ChatModel
from steerheal.pipeline import loop
from steerheal.pipeline.stage_store import Store
from steerheal.pipeline.stages import HEALED, VECTOR, Stages
from steerheal.records import RunRecord, VignetteRow
from steerheal.state.values import State, base
from steerheal.state.vector import SteeringVector
from steerheal.steer.methods import mean_difference
from steerheal.steer.states import Source
from steerheal.tables import (
    AGGREGATES,
    BARRIERS,
    ENGINES,
    INSTRUMENTS,
    METHODS,
    OBJECTIVES,
    TEACHERS,
    Table,
)

import tiny

TABLES = [METHODS, TEACHERS, BARRIERS, AGGREGATES, OBJECTIVES, INSTRUMENTS, ENGINES]
DOCS = Path(__file__).parents[1] / "docs"


# ── additions of one's own ──────────────────────────────────────────────────────────────────────


def backwards(source: Source) -> dict[int, Tensor]:
    """A method: the mean difference the other way round."""
    return {layer: -v for layer, v in mean_difference.directions(source).items()}


def chi_squared(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A barrier: Σ_v p_v²/q_v − 1."""
    return (2 * log_p - log_q).exp().sum(-1) - 1


def even(
    chat: ChatModel,
    vignettes: Sequence[Vignette],
    _settings: MeasureSettings,
    progress: Callable[[int], None],
) -> list[Read]:
    """An instrument: every reason is as likely as any other, in every state."""
    rows = [
        VignetteRow(
            id=one.id, condition=one.condition, foundation=one.foundation,
            score=(0.0,) * 7, p=(1 / 7,) * 7, p_ans_any=0.5, nll_prefill=1.0,
        )
        for one in vignettes
    ]  # fmt: skip
    progress(len(rows) * chat.entered)
    return [Read(rows) for _ in range(chat.entered)]


def by_prompt(student: State, _vector: SteeringVector) -> State:
    """An arm: the text is written under the persona's prompt, without a vector."""
    return student.prompted(tiny.persona().positive)


@pytest.mark.long
def test_a_run_takes_a_method_a_barrier_an_instrument_and_an_arm_from_elsewhere(
    tmp_path: Path,
) -> None:
    own = {
        "vector": {"method": backwards},
        "heal": {"barrier": "test_tables:chi_squared"},
        "measure": {"instrument": even},
        "rounds": 1,
        "check": {"doses": ()},
    }
    config = RunConfig.model_validate(merge(test_loop.TINY, own))
    named = (config.vector.method, config.heal.barrier, config.measure.instrument)
    assert named == ("test_tables:backwards", "test_tables:chi_squared", "test_tables:even")
    chat, persona = tiny.chat(), tiny.persona()
    store = Store(tmp_path, "run", notify=lambda _: None)
    record = RunRecord(
        status="running", name="run", config=config.model_dump(mode="json"), command="",
        environment={"fingerprint": chat.fingerprint}, persona=persona.model_dump(mode="json"),
    )  # fmt: skip
    stages = Stages(config, persona, chat, store, test_loop.Silent())
    done = loop.run(stages, record, test_loop.Silent(), teach=by_prompt)
    (first,) = done.rounds
    assert done.status == "finished" and first.outcome == "folded" and first.multiplier == 0
    assert first.heal is not None and math.isfinite(first.heal.steps[0].divergence)
    assert first.healed is not None
    assert all(v == pytest.approx(math.log(1 / 7)) for v in first.healed.nats.values())
    plain = Stages(
        RunConfig.model_validate(merge(test_loop.TINY, {})), persona, chat,
        Store(tmp_path, "plain", notify=lambda _: None), test_loop.Silent(),
    )  # fmt: skip
    cosine = stages.vector(0, base()).cosine(plain.vector(0, base()))
    assert cosine == pytest.approx(-1)


def test_a_barrier_written_as_a_function_has_the_gradient_of_its_formula() -> None:
    chat, random = tiny.chat(), torch.Generator().manual_seed(0)
    states = torch.randn(9, 32, generator=random, requires_grad=True)
    reference = torch.randn(9, 32, generator=random)
    name = BARRIERS.name_of(chi_squared)
    ours = position_losses(chat, states, torch.arange(9), reference, name)
    with torch.no_grad():
        log_q = chat.logits(reference).log_softmax(-1)
    plain = chi_squared(chat.logits(states).log_softmax(-1), log_q)
    (grad,) = torch.autograd.grad(plain.sum(), states)
    torch.testing.assert_close(ours.divergence, plain.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.divergence_grad, grad, atol=1e-5, rtol=1e-4)


def test_a_key_knows_the_code_of_what_comes_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "elsewhere.py"
    chat, persona = tiny.chat(), tiny.persona()

    def keys(body: str) -> tuple[str, str]:
        module.write_text(f"def push(*_):\n    return {body}\n")
        monkeypatch.delitem(__import__("sys").modules, "elsewhere", raising=False)
        __import__("linecache").clearcache()
        vector = VectorSettings(method="elsewhere:push")
        heal = HealSettings(barrier="elsewhere:push")
        return (
            VECTOR.of(chat, persona, ["a"], vector).key,
            HEALED.of(chat, base(), base(), [], heal, number=0, seed=0).key,
        )

    one, other = keys("1"), keys("2222")
    assert one == keys("1")
    assert one[0] != other[0] and one[1] != other[1]
    assert METHODS.code_of("pca") == ""


# ── the tables ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.what)
def test_every_row_leads_to_something_and_is_said_in_help_and_docs(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--help-all"])
    said = " ".join(capsys.readouterr().out.split())
    docs = (DOCS / "method.md").read_text(encoding="utf-8")
    for name, row in table.rows.items():
        found = table.find(name)
        assert (found is not None) == bool(row.place)
        assert f"{name}: {row.says}" in said
        assert f"`{name}`" in docs
    assert table.sentences() in said


def test_a_name_that_is_none_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"heal\.barrier: given kl_revv; allowed: none or kl_fwd"):
        validated(RunConfig, {"heal": {"barrier": "kl_revv"}}, source="test")
    with pytest.raises(UserError, match=r"measure\.instrument: given 3; allowed: auto or"):
        validated(RunConfig, {"measure": {"instrument": 3}}, source="test")
    with pytest.raises(UserError, match="The barrier no_such:thing is not to be had"):
        BARRIERS.find("no_such:thing")
    with pytest.raises(UserError, match="has no attribute 'nothing'"):
        BARRIERS.find("test_tables:nothing")
    with pytest.raises(UserError, match="Perhaps you meant 'kl_rev'"):
        BARRIERS.find("kl_revv")


def test_the_former_name_of_no_barrier_is_read_as_today_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.toml"
    file.write_text('[heal]\nbarrier = "nll"\n')
    assert resolve(file=file).heal.barrier == "none"
    assert not resolve(file=file).heal.barred
    assert HealSettings(barrier="nll") == HealSettings()
    recorded = RunConfig().model_dump(mode="json")
    recorded["heal"]["barrier"] = "nll"
    assert validated(RunConfig, recorded, source="an old record") == RunConfig()
    with pytest.raises(SystemExit):
        main(["run", "lvoe", "--heal.barrier", "nll"])
    assert "heal.barrier" not in capsys.readouterr().err


def test_a_place_where_nothing_is_ends_a_run_before_its_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("steerheal.pipeline.run.load", load)
    with pytest.raises(SystemExit) as ended:
        main(["run", "love", "--runs", str(tmp_path), "--heal.barrier", "no_such:thing"])
    assert ended.value.code == 2
    assert "The barrier no_such:thing is not to be had" in capsys.readouterr().err
