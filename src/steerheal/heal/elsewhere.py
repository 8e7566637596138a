"""Logits of an exported model as somebody else gets them: a program that imports nothing of ours.

It is run by its path in a process of its own. In, on standard input: JSON with the folder or hub id
of the model, loading options, dtype, device, an adapter's folder or nothing, rows of token ids, and
a file. Out: that file, safetensors with float32 logits per row.
"""

import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    """Reads what is asked, and writes the logits."""
    asked = json.load(sys.stdin)
    dtype = getattr(torch, asked["dtype"])
    net = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=dtype, **asked["options"])
    if asked["adapter"]:
        net = PeftModel.from_pretrained(net, asked["adapter"])
    net.to(asked["device"]).eval()
    with torch.inference_mode():
        rows = [
            net(input_ids=torch.tensor([ids], device=asked["device"])).logits[0].float().cpu()
            for ids in asked["rows"]
        ]
    assert not any(name.partition(".")[0] == "steerheal" for name in sys.modules)
    save_file({str(i): row.clone() for i, row in enumerate(rows)}, asked["out"])


if __name__ == "__main__":
    main()
