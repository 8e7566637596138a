"""The doors around the instruments: upstream, the hub, auto, outside guards."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from steerheal.config import MeasureSettings
from steerheal.errors import UserError
from steerheal.measure import auto, guards, instruments, moralmaps, vignettes
from steerheal.measure.qualify import in_words
from steerheal.personas import Axis

import tiny

AXIS = Axis(foundation="care", sign=1)
SMALL = MeasureSettings(instrument="likelihood", per_foundation=1)


def present(monkeypatch: pytest.MonkeyPatch, name: str, module: Any) -> None:
    """Makes an optional package look installed."""
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())


def test_upstream_is_called_with_our_vignettes_and_fills_our_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def evaluate(_model: object, _tokenizer: object, **options: Any) -> dict[str, Any]:
        asked.update(options)
        row = {"score": [-1.0] * 7, "p": [1 / 7] * 7, "pmass_allowed": 0.9, "nll_prefill": 2.0}
        return {"per_row": [row for _ in options["vignettes"]]}

    upstream = ModuleType("moralmaps")
    upstream.evaluate = evaluate  # pyright: ignore[reportAttributeAccessIssue]
    present(monkeypatch, "moralmaps", upstream)
    chosen = vignettes.chosen(SMALL)
    rows = moralmaps.read(tiny.chat(), chosen, think=8)
    assert [row.id for row in rows] == [vignette.id for vignette in chosen]
    assert rows[0].p_ans_any == 0.9 and len(rows[0].score) == 7
    assert asked["max_think_tokens"] == 8 and asked["conditions"] == ("other_violate",)
    assert asked["vignettes"][0]["other_violate"] == chosen[0].text


def test_upstream_that_is_not_installed_says_how_to_install_it() -> None:
    settings = SMALL.model_copy(update={"instrument": "moralmaps"})
    with pytest.raises(UserError, match="pip install"):
        instruments.read(tiny.chat(), vignettes.chosen(settings), settings)


def test_the_hub_dataset_is_fetched_by_name_and_a_failure_is_one_clear_message(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(repository: str, file: str, *, repo_type: str) -> str:
        assert (repository, repo_type) == ("wassname/tiny-mfv", "dataset")
        name, _, rest = file.partition("/")
        return str(shared / "tinymfv" / rest.replace("vignettes_", f"vignettes_{name}_"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert len(vignettes.load("wassname/tiny-mfv:scifi", "self")) == 132

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match="Cannot fetch"):
        vignettes.load("wassname/tiny-mfv")


def test_a_file_brings_its_twin_for_the_other_condition(shared: Path) -> None:
    file = str(shared / "tinymfv" / "vignettes_classic_other_violate.jsonl")
    both = MeasureSettings(vignettes=file, conditions=("other", "self"), per_foundation=2)
    found = vignettes.chosen(both)
    assert len(found) == 28
    assert {vignette.condition for vignette in found} == {"other", "self"}


@pytest.mark.long
def test_a_hundred_thousand_vignettes_are_refused_and_a_subset_of_them_is_read(
    tmp_path: Path,
) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(
        "".join(
            f'{{"id": "{i}", "foundation_coarse": "Care", "text": "You see act {i}."}}\n'
            for i in range(100_000)
        )
    )
    with pytest.raises(UserError, match="100000 vignettes"):
        vignettes.chosen(MeasureSettings(vignettes=str(file)))
    assert len(vignettes.chosen(MeasureSettings(vignettes=str(file), per_foundation=5))) == 5


def test_a_nan_label_is_one_clear_message(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text('{"id": "a", "foundation_coarse": "Care", "text": "x", "human_Care": NaN}')
    with pytest.raises(UserError, match="human_Care"):
        vignettes.load(str(file))


def test_auto_falls_back_to_likelihood_and_says_why() -> None:
    settings = MeasureSettings(instrument="auto", per_foundation=2, think=0)
    resolved = auto.resolve(tiny.chat(), settings, AXIS)
    assert resolved.settings.instrument == "likelihood"
    assert "same token" in in_words(resolved.tried[0])
    assert auto.resolve(tiny.chat(), SMALL, AXIS) == (SMALL, ())


def test_an_outside_guard_reads_the_harness_or_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = tiny.chat()
    with pytest.raises(UserError, match="pip install lm-eval"):
        guards.read(chat, "lm_eval:piqa")
    with pytest.raises(UserError, match="Write lm_eval:TASK"):
        guards.read(chat, "piqa")
    harness = SimpleNamespace(
        simple_evaluate=lambda **_: {"results": {"piqa": {"acc,none": 0.5, "alias": "piqa"}}}
    )
    wrapper = SimpleNamespace(HFLM=lambda **_: object())
    present(monkeypatch, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", wrapper)
    assert guards.read(chat, "lm_eval:piqa") == {"lm_eval:piqa/acc": 0.5}
