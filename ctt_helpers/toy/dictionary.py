"""Train the crosscoder that is shipped with the embedded suite.

python -m ctt_helpers.toy.dictionary --out FOLDER
"""

import argparse
import shutil
from pathlib import Path

import torch

import ctt_helpers as ctt
from ctt_helpers.files import expanded, write_sums

N_LATENTS = 512
K = 12
TRAIN_TOKENS = 140_000
EVAL_TOKENS = 110_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the crosscoder; must not exist yet"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    out = expanded(arguments.out)
    seed = arguments.seed
    if out.exists():
        parser.error(f"{out} exists. Give another folder, or delete it first.")
    torch.set_num_threads(arguments.threads)

    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    stream = ctt.ActivationStream(ckpts, suite.text(TRAIN_TOKENS, seed=seed), seed=seed)
    crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, N_LATENTS, k=K, seed=seed)
    # the run has a folder of its own; only the finished crosscoder is moved to where it belongs
    work = out.with_name(f".{out.name}.training")
    result = ctt.train(crosscoder, stream, ctt.TrainConfig(), out=work, device="cpu")
    held_out = suite.text(EVAL_TOKENS, split="validation", seed=seed + 1)
    report = ctt.evaluate(crosscoder, ckpts, held_out)

    made = work / "crosscoder"
    result.history.to_csv(made / "history.csv", index=False)
    report.save(made / "report.json")
    write_sums(made)
    made.rename(out)  # it is there when it is whole
    shutil.rmtree(work)
    print(report.to_frame().round(4).to_string())
    print(
        f"L0 {report.l0:.1f}, dead {report.dead:.3f} over {report.dead_tokens:,} tokens, "
        f"{result.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
