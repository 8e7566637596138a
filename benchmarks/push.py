"""What decay, a KL budget and backtracking buy in long completions, at the same nominal dose.

Embedded model, persona `love`: the same prompts and seeds under every way of pushing; the filter's
limits are set on the base's own text of the same length. Survivors and log-odds are paired with the
constant dose (over prompts, 95 %); log-odds are over all completions, dropped ones
included, so that a way cannot win by breaking more.

    python benchmarks/push.py [--tokens 256] [--rows 32] [--dose 1.5]
"""

import argparse
import statistics
import time

import numpy as np

from steerheal.config import (
    FilterSettings,
    ModelSettings,
    PushSettings,
    SamplingSettings,
    VectorSettings,
)
from steerheal.console import shown
from steerheal.filter.rules import calibrated, judge
from steerheal.filter.scores import scored_by
from steerheal.measure.stats import mean, share, share_change
from steerheal.models.generate import Draw, write
from steerheal.models.load import load
from steerheal.personas import find
from steerheal.prompts import contexts
from steerheal.state.values import base
from steerheal.steer.vector import extract


def ways(tokens: int, budget: float, spike: float) -> dict[str, PushSettings]:
    """Every way of pushing, by name."""
    return {
        "constant": PushSettings(),
        "linear decay to 0": PushSettings(decay="linear", decay_tokens=tokens),
        "exponential decay": PushSettings(decay="exponential", decay_tokens=tokens // 2),
        f"KL budget {budget:g}": PushSettings(kl_budget=budget),
        "backtracking, loops": PushSettings(backtrack=True),
        f"backtracking, spikes {spike:g}": PushSettings(backtrack=True, spike=spike),
    }


def main() -> None:
    """Prints one line per way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="longest completion")
    parser.add_argument("--rows", type=int, default=32, help="completions per way")
    parser.add_argument("--dose", type=float, default=1.5, help="nominal dose of all ways")
    parser.add_argument("--budget", type=float, default=2.0, help="nats per token")
    parser.add_argument("--spike", type=float, default=2.5, help="nats over eight tokens")
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args()
    chat, persona = load(ModelSettings(device="cpu")), find("love")
    vector = extract(chat, persona, contexts()[:64], VectorSettings())
    sampling = SamplingSettings(
        tokens=options.tokens, rows=options.rows, temperature=options.temperature
    )
    prompts, settings = persona.prompts.train[: options.rows], FilterSettings()
    plain = write(chat, [Draw(p, seed=500 + i) for i, p in enumerate(prompts)], sampling)
    limits = calibrated(
        plain.completions, scored_by(chat, plain.completions, persona), persona, settings
    )
    draws = [Draw(prompt, seed=i) for i, prompt in enumerate(prompts)]
    print(f"{chat.name}, {options.rows} × {options.tokens} tokens, dose {options.dose:g}, "
          f"temperature {options.temperature:g}")  # fmt: skip
    first: tuple[np.ndarray, np.ndarray] | None = None
    for name, push in ways(options.tokens, options.budget, options.spike).items():
        start = time.perf_counter()
        with base().steered(vector, options.dose).entered(chat) as reader:
            said, states = write(reader, draws, sampling, push=push, keep_states=True)
        seconds = time.perf_counter() - start
        scored = scored_by(chat, said, persona, states)
        verdicts = judge(said, scored, persona, calibration=limits, settings=settings)
        kept = np.array([float(verdict.kept) for verdict in verdicts])
        odds = np.array([of.logodds for of in scored])
        kl = statistics.mean(verdict.kl for verdict in verdicts)
        dose = statistics.mean(statistics.mean(c.doses or (c.dose,)) for c in said)
        tokens = sum(len(item.tokens) for item in said)
        print(f"{name:28} survivors {shown(share(kept), 2)}  log-odds {shown(mean(odds))}"
              f"  KL {kl:.2f}  mean dose {dose:.2f}  rewinds {sum(c.rewinds for c in said):3d}"
              f"  {tokens / seconds:4.0f} tokens/s", flush=True)  # fmt: skip
        if first is None:
            first = kept, odds
        else:
            print(f"{'  against constant':28} survivors {shown(share_change(kept - first[0]), 2)}  "
                  f"log-odds {shown(mean(odds - first[1]))}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
