"""`steerheal doctor`: what a model is to a run, and what is not tried."""

from pathlib import Path

import pytest

from steerheal.cli import main
from steerheal.pipeline.doctor import findings

import tiny


def test_the_template_is_told_as_it_is() -> None:
    found = dict(findings(tiny.chat()))
    assert found["system role"] == "yes" and "no switch" in found["thinking"]
    assert found["date"] == "the template prints none" and "260 tokens" in found["tokenizer"]
    assert found["a turn ends with"] == tiny.END and "float32" in found["device"]
    dated = tiny.CHATML + "{{ strftime_now('%d %B %Y') }}"
    told = dict(findings(tiny.chat(template=tiny.NO_SYSTEM + dated, date="2026-03-14")))
    assert told["system role"].startswith("no") and told["date"] == "2026-03-14"
    switch = tiny.CHATML + "{% if enable_thinking %}<think>\n{% endif %}"
    assert "enable_thinking" in dict(findings(tiny.chat(template=switch)))["thinking"]


@pytest.mark.slow
def test_the_doctor_says_what_every_preset_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerheal.pipeline.forecast.TRIAL", 0.0)
    main(["doctor", "--model", str(tiny.saved(tmp_path))])
    said = capsys.readouterr().out
    for words in ("LlamaForCausalLM", "quick", "standard", "full", "was not tried", "Not tried"):
        assert words in said
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--model", "nowhere.gguf"])
    assert stop.value.code == 2 and "no GGUF file" in capsys.readouterr().err
