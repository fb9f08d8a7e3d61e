"""`python -m mmcollapse <command>`: what the Makefile calls."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmcollapse.errors import MMCollapseError


def pretrain(args):
    from dataclasses import replace

    import torch

    from mmcollapse.models.pretrain import SCALES, pretrain, tiny
    from mmcollapse.worlds import open_world

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" in os.environ:  # several GPUs: python -m torch.distributed.run --nproc_per_node=N -m mmcollapse ...
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(device := f"cuda:{os.environ['LOCAL_RANK']}")
    scale = tiny(SCALES[args.world]) if args.profile == "smoke" else SCALES[args.world]
    if args.steps:
        names = ("vae", "oracle", "judge", "generator", "captioner")
        scale = replace(scale, **{n: replace(getattr(scale, n), steps=args.steps) for n in names})
    world = open_world(args.world, args.data)
    pretrain(world, Path(args.out), scale, device, args.stages.split(",") if args.stages else None, args.seed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mmcollapse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="nano")
    common.add_argument("--world", default="scenes")
    common.add_argument("--data")
    p = commands.add_parser("pretrain", parents=[common], help="build the base models of a world")
    p.add_argument("--out", required=True)
    p.add_argument("--stages", help="comma-separated; default: all that are missing")
    p.add_argument("--steps", type=int, help="steps of every stage, instead of the plan's")
    p.add_argument("--device")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=pretrain)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except MMCollapseError as error:
        print(f"mmcollapse: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
