"""Whether vignettes work: top-1 and a confusion table of the likelihood instrument on a base model.

Usage: python benchmarks/vignettes.py [SET OR FILE ...]; the bundled sets when none is named.
"""

import argparse
import time

import numpy as np

from steerheal.config import ModelSettings
from steerheal.measure import likelihood, vignettes
from steerheal.models.load import load
from steerheal.records import FOUNDATIONS


def main() -> None:
    """Prints a table per set: rows are what was meant, columns what was read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(vignettes.BUNDLED))
    chat = load(ModelSettings(device="cpu"))
    for name in parser.parse_args().sets:
        asked = vignettes.load(name)
        start = time.perf_counter()
        rows = likelihood.read(chat, asked)
        seconds = time.perf_counter() - start
        scores = np.array([row.score for row in rows])
        read = (scores - scores.mean(axis=0)).argmax(axis=1)
        meant = np.array([FOUNDATIONS.index(row.foundation) for row in rows])
        confusion = np.zeros((7, 7), dtype=int)
        np.add.at(confusion, (meant, read), 1)
        print(f"{name}: {len(rows)} vignettes, {seconds:.1f} s, top-1 {(read == meant).mean():.2f}")
        print(" " * 12 + "".join(f"{foundation[:6]:>8}" for foundation in FOUNDATIONS))
        for foundation, counts in zip(FOUNDATIONS, confusion, strict=True):
            print(f"{foundation:12}" + "".join(f"{count:8d}" for count in counts))


if __name__ == "__main__":
    main()
