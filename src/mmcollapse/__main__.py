"""`python -m mmcollapse <command>`: what the Makefile calls."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import ROOT, Settings, load_settings, parse_changes


def changes(args, *leave_out: str) -> dict:
    """What the command line changes in the profile; --set comes last."""
    names = [n for n in ("world", "data", "models", "runs", "results", "figures") if n not in leave_out]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return given | parse_changes(args.set)


def settings_without_data(args) -> Settings:
    """For commands that read only results: they need no pictures."""
    return load_settings(args.profile, args.only or "", **changes(args, "world", "data"))


def run(args):
    from mmcollapse.runner import run

    return run(args.profile, changes(args), args.only, args.jobs)


def validate(args):
    from mmcollapse.runner import validate

    return validate(changes(args), args.only)


def figures(args):
    from mmcollapse.figures import draw

    settings = settings_without_data(args)
    for path in draw(settings.results_folder, settings.figures_folder, args.only):
        print(path)


def ship(args):
    from mmcollapse.ship import ship

    settings = settings_without_data(args)
    target = ROOT / "data" / "results" / settings.profile
    written = ship(settings.results_folder, target, settings.figures_folder, settings.profile)
    size = sum(path.stat().st_size for path in written)
    print(f"shipped {settings.results_folder} to {target} and {settings.figures_folder}: {size / 2**20:.1f} MiB")


def report(args):
    from mmcollapse.report import report

    pages = report(settings_without_data(args), Path(args.site))
    print(f"made {args.site}: {len(pages)} pages; open {pages[0]}")


def plan(args):
    from mmcollapse.plan import plan
    from mmcollapse.runner import chosen

    print(plan({name: load_settings(args.profile, name, **changes(args)) for name in chosen(args.only)}))


def status(args):
    from mmcollapse.runner import chosen
    from mmcollapse.status import status

    told = changes(args, "world", "data")
    print(status({name: load_settings(args.profile, name, **told) for name in chosen(args.only)}))


def trace(args):
    from mmcollapse.runner import chosen
    from mmcollapse.trace import trace

    asked = {name: getattr(args, name) or "" for name in ("row", "figure", "claim")}
    print(trace(settings_without_data(args), chosen(args.only)[0], **asked))


def verify(args):
    from mmcollapse.verify import PARTS, verify

    parts = args.parts.split(",") if args.parts else [*PARTS]
    return verify(settings_without_data(args), parts, args.every, args.only)


def rate(args):
    from mmcollapse.rate import rate

    settings, only = settings_without_data(args), args.only or "01_variance"
    made = rate(settings.results_folder, only, args.arms or settings.arms, args.generation, args.tasks)
    print(f"made {made.page}: {made.tasks} tasks on {', '.join(made.arms)}, about {made.minutes} minutes a rater")
    print(f"made {made.key}: which is which; raters must not have it, and without it no rating can be read")
    print(f"put the files that raters save into {made.page.parent}, then: make reproduce ONLY=09_human", end="")
    told = {"profile": args.profile if args.profile != "nano" else "", "results": args.results}
    print("".join(f" {name.upper()}={value}" for name, value in told.items() if value))


def check(args):
    from mmcollapse.check import check

    foreign = [name for name in ("only", "data", "runs", "results", "figures", "world") if getattr(args, name)]
    if foreign or args.set:
        raise MMCollapseError(f"--{[*foreign, 'set'][0]}: a check reads the sets it is given, no settings of a study")
    if Path(args.out).is_file():
        raise MMCollapseError(f"out={args.out!r}: is a file; a folder is needed for the report")
    found = check(args.generations, args.real, args.space, args.alpha, args.models, args.instruments)
    print(f"{found}\nmade {found.save(args.out)}")
    return 3 if found.collapsing else 4 if found.found["warning"] else 0


def sweep(args):
    from mmcollapse.pool import at_once, open_pool
    from mmcollapse.sweep import choose, in_words, sweep

    settings = load_settings(args.profile, **changes(args))
    gpu = settings.resolved_device() == "cuda"
    with open_pool(at_once(gpu), gpu) as pool:
        print(in_words(choose(sweep(settings, pool))))
    print(f"\nmade {settings.results_folder / '00_recipe.parquet'}")


def instruments(args):
    from mmcollapse.instruments import instruments

    settings = load_settings(args.profile, **changes(args))
    instruments(settings)
    print(f"made {settings.results_folder / '00_instruments.parquet'}")


def freeze(args):
    from mmcollapse.claims import FROZEN, freeze

    record = freeze()
    print(f"frozen: claims.toml, digest {record['digest']}, at commit {record['commit'] or 'unknown'}; commit {FROZEN}")


def bench(args):
    from mmcollapse.bench import bench

    bench(load_settings(args.profile, **changes(args)))


def fetch(args):
    from mmcollapse.fetch import fetch, plan
    from mmcollapse.runner import chosen
    from mmcollapse.sources import needed, open_origin, sources_of

    origin = open_origin(args.mirror, args.folder)
    if args.what:
        needs = [source for name in args.what.split(",") for source in sources_of(name.strip())]
    else:
        needs = needed(load_settings(args.profile, name, **changes(args)) for name in chosen(args.only))
    if not needs:
        print(f"profile {args.profile} needs nothing from elsewhere")
        return
    print(plan(needs, origin), flush=True)
    if not args.dry:
        fetch(needs, origin)


def pretrain(args):
    from dataclasses import replace

    import torch

    from mmcollapse.models.pretrain import SCALES, each_recipe, pretrain, tiny
    from mmcollapse.models.score import write_scores
    from mmcollapse.worlds import open_world

    if args.set:
        raise MMCollapseError(
            f"--set {args.set[0]}: pretraining takes no settings; its plans are in models/pretrain.py"
        )
    world = open_world(args.world or "scenes", args.data)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" in os.environ:  # several GPUs: python -m torch.distributed.run --nproc_per_node=N -m mmcollapse ...
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(device := f"cuda:{os.environ['LOCAL_RANK']}")
    scale = tiny(SCALES[world.name]) if args.profile == "smoke" else SCALES[world.name]
    if args.steps:
        scale = each_recipe(scale, lambda recipe: replace(recipe, steps=args.steps))
    out = Path(args.models) if args.models else ROOT / "data" / "models" / world.name
    stages = args.stages.split(",") if args.stages else None
    if stages != ["score"]:
        pretrain(world, out, scale, device, stages and [name for name in stages if name != "score"], args.seed)
    if (stages is None or "score" in stages) and not int(os.environ.get("RANK", 0)):
        write_scores(world, out, device, n=20 if args.profile == "smoke" else 1000)
        print(f"made {out / 'scores.json'} and a card in each folder of {out}")


def study(args):
    from mmcollapse.experiments import PRIORITY
    from mmcollapse.parallel import LAUNCHED, launch, together
    from mmcollapse.pool import at_once, open_pool
    from mmcollapse.runner import refuse_shipped
    from mmcollapse.study import run_study

    if args.only and args.only not in PRIORITY:
        raise MMCollapseError(f"only={args.only!r}: the experiments with chains are {', '.join(PRIORITY)}")
    for name in ("workers", "minutes"):
        if getattr(args, name) < 0:
            raise MMCollapseError(f"{name}={getattr(args, name):g}: allowed are 0 or more")
    names = [args.only] if args.only else PRIORITY
    settings = {name: load_settings(args.profile, name, **changes(args)) for name in names}
    before = Path(args.before) if args.before else None
    if before and not before.is_dir():
        raise MMCollapseError(f"before={args.before!r}: there is no such folder")
    refuse_shipped(settings)
    device = settings[names[0]].resolved_device()
    gpu = device == "cuda"
    if args.gpus > 1:
        given = {"before": args.before, "minutes": args.minutes, "scheduler": args.scheduler}
        if alone := [name for name, value in given.items() if value]:
            raise MMCollapseError(
                f"gpus={args.gpus}: then all GPUs work at one chain at a time, and {alone[0]}= has no meaning"
            )
        return together(settings) if LAUNCHED in os.environ else launch(args.gpus, device, sys.argv[1:])
    with open_pool(args.workers or at_once(gpu), gpu, args.minutes, args.scheduler or "") as pool:
        return 1 if run_study(settings, pool, before) else 0


COMMANDS = {
    run: "run the notebooks of a profile",
    study: "run all chains of a profile, many at once, without notebooks",
    figures: "draw the figures again, from the tables alone",
    ship: "put results where git keeps them, with the samples that figures show",
    report: "make a static site of results, figures and executed notebooks",
    plan: "count what a profile comes to, before anything is run",
    status: "what is done and what is missing",
    trace: "from a row of a table or a figure to the run that made it",
    verify: "compute the numbers of results again on this machine",
    rate: "write the page on which people judge pictures of two or more arms",
    check: "are sets of pictures, one a generation, collapsing? exit status 3: they are, 4: this judge cannot tell",
    fetch: "bring here what a profile needs from elsewhere: models, instruments, data",
    pretrain: "build the base models of a world",
    sweep: "choose learning rate and steps on pilot seeds",
    instruments: "real pictures and captions, damaged by known amounts: what the metrics see of it",
    freeze: "freeze the claims file before a study",
    bench: "speed on this machine: models, and metrics beside clean-fid",
    validate: "run copies of the notebooks at smoke through nbval",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mmcollapse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default="nano")
    common.add_argument("--only", help="one experiment, by the name of its notebook; for figures also one figure")
    common.add_argument("--world", help="scenes or photos")
    common.add_argument("--data", help="folder of the photos")
    common.add_argument("--models", help="folder of the base models; default: data/models/<world>")
    common.add_argument("--runs", help="folder of the store")
    common.add_argument("--results", help="folder of tables and executed notebooks")
    common.add_argument("--figures", help="folder of figures")
    common.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parsers = {}
    for function, text in COMMANDS.items():
        parsers[function] = commands.add_parser(function.__name__, parents=[common], help=text)
        parsers[function].set_defaults(run=function)
    parsers[run].add_argument("--jobs", type=int, default=0, help="notebooks at once; 0: one a core, on a GPU one")
    p = parsers[study]
    p.add_argument("--workers", type=int, default=0, help="chains at once; 0: one a core, on GPUs a few each")
    p.add_argument(
        "--minutes", type=float, default=0, help="begin no chain that would not end within them; 0: no limit"
    )
    p.add_argument("--before", help="folder of tables of earlier runs, whose chains are not run again")
    p.add_argument("--gpus", type=int, default=1, help="GPUs that one chain uses together; chains then run one by one")
    p.add_argument("--scheduler", help="address of a dask scheduler; default: processes on this machine")
    parsers[report].add_argument("--site", default="site", help="folder of the site")
    parsers[trace].add_argument("--row", help="a row's number, its hash, or a filter such as 'arm=real generation=2'")
    parsers[trace].add_argument("--figure", help="a figure file")
    parsers[trace].add_argument("--claim", help="the id of a claim, such as C1: the rows that its verdict rests on")
    parsers[verify].add_argument("--parts", help="comma-separated, of a, b, c, d; default: all")
    parsers[verify].add_argument("--every", action="store_true", help="in b all base models, decodings and subsets")
    p = parsers[rate]
    p.add_argument("--arms", default="", help="comma-separated, two or more; or name=folder of pictures with captions")
    p.add_argument("--generation", type=int, help="of the pictures; default: the last that all arms have")
    p.add_argument("--tasks", type=int, default=0, help="of each of the three questions, without attention checks")
    p = parsers[check]
    p.add_argument("generations", nargs="+", metavar="GEN", help="folder or Parquet file of each, generation 0 first")
    p.add_argument("--real", help="real pictures: a folder or a Parquet file, of twice as many pictures if there are")
    p.add_argument("--space", help="judge (of scenes; the default for 64 x 64 pictures), inception, clip or dino")
    p.add_argument("--instruments", help="folder of inception/, clip/ and dino/; default: data/models/instruments")
    p.add_argument("--alpha", type=float, default=0.05, help="chance of a false alarm, of the whole check")
    p.add_argument("--out", default="check", help="folder of report.html, check.json and figures")
    p = parsers[fetch]
    p.add_argument("--dry", action="store_true", help="only say what would be fetched")
    p.add_argument("--mirror", action="append", default=[], help="https://... for the hub, HOST=https://... for others")
    p.add_argument("--from", dest="folder", default="", help="a folder with the layout of data/, instead of a network")
    p.add_argument("--what", help="comma-separated: these models, instruments or data, and not the profile's")
    p = parsers[pretrain]
    p.add_argument("--stages", help="comma-separated; default: all that are missing, then score")
    p.add_argument("--steps", type=int, help="steps of every stage, instead of the plan's")
    p.add_argument("--device")
    p.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: kernels and workers are ended, too, tables written
        if signal.getsignal(name) == signal.SIG_DFL:  # under nohup it is to be ignored
            signal.signal(name, signal.default_int_handler)
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads has enough, such as `head`; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MMCollapseError as error:
        print(f"mmcollapse: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mmcollapse: interrupted; what is finished stays, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
