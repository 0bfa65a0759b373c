"""Train the crosscoder that is shipped with the embedded suite: `python -m ctt_helpers.toy.dictionary --out FOLDER`."""

import argparse
import shutil
from pathlib import Path

import torch

import ctt_helpers as ctt
from ctt_helpers.toy.pretrain import sha256

N_LATENTS, K, TRAIN_TOKENS, EVAL_TOKENS = 512, 16, 140_000, 110_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the crosscoder; must not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists. Give another folder, or delete it first.")
    torch.set_num_threads(arguments.threads)
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    stream = ctt.ActivationStream(ckpts, suite.text(TRAIN_TOKENS, seed=arguments.seed), seed=arguments.seed)
    crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, N_LATENTS, k=K, seed=arguments.seed)
    work = arguments.out.with_name(f".{arguments.out.name}.training")
    result = ctt.train(crosscoder, stream, ctt.TrainConfig(), out=work, device="cpu")
    report = ctt.evaluate(crosscoder, ckpts, suite.text(EVAL_TOKENS, split="validation", seed=arguments.seed + 1))
    (work / "crosscoder").rename(arguments.out)
    result.history.to_csv(arguments.out / "history.csv", index=False)
    report.save(arguments.out / "report.json")
    files = sorted(path.name for path in arguments.out.iterdir())
    sums = "".join(f"{sha256(arguments.out / name)}  {name}\n" for name in files)
    (arguments.out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    shutil.rmtree(work)
    print(report.to_frame().round(4).to_string())
    print(f"L0 {report.l0:.1f}, dead {report.dead:.3f} over {report.dead_tokens:,} tokens, {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
