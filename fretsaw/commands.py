"""What the commands do: their options as dataclasses, and a function each.

Options are read by tyro from the dataclasses, a stage's from its settings. Torch is imported by no
command that does not compute.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fretsaw.checkpoint.targets import Name as Engine
from fretsaw.sampling import Sampling
from fretsaw.serve.settings import Limits
from fretsaw.workers import HERE, Workers

Checkpoint = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
Repeated = Annotated[list[str], tyro.conf.UseAppendAction]

# --- options that mean the same everywhere --------------------------------------------------------

Dtype = Literal["auto", "fp32", "bf16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that computes."""

    out: Path
    """Where the result goes; the same command goes on there after an interruption."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of matrix work; auto takes bf16 where it is fast."""
    seed: int = 0
    """Seed of everything random."""


def _parse(cls: type, name: str, argv: list[str], description: str) -> Any:
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    return tyro.cli(cls, args=argv, prog=f"fretsaw {name}", description=description, config=config)


# --- stages ---------------------------------------------------------------------------------------


def stage(name: str, argv: list[str]) -> None:
    """Run one stage from the command line; its options are its settings' fields."""
    from fretsaw.checkpoint.folder import resolve
    from fretsaw.launch import run_stage
    from fretsaw.recipe import STAGES

    if name == "search" and any(arg.split("=")[0] in ("--library", "--limit") for arg in argv):
        return _search_file(argv)
    if name == "bench" and argv and not argv[0].startswith("-"):
        return _bench_server(argv)
    kind = STAGES[name]
    fields: list[tuple] = []
    for input_name, text in kind.inputs.items():
        if input_name == "problems":
            continue  # named by --task
        if input_name in kind.several:
            fields.append((input_name, list[str]))
            if input_name in kind.optional:
                fields[-1] += (dataclasses.field(default_factory=list),)
        elif input_name in kind.optional:
            fields.append((input_name, str | None, dataclasses.field(default=None)))
        else:
            fields.append((input_name, str if input_name != kind.positional else Checkpoint))
        fields[-1] = _documented(fields[-1], text)
    fields += [
        ("common", Common),
        ("settings", kind.settings, dataclasses.field(default_factory=kind.settings)),
    ]
    if kind.has_workers:
        fields.append(("workers", Workers, dataclasses.field(default=HERE)))
    cls = dataclasses.make_dataclass(name, fields, kw_only=True)
    description = f"{kind.summary}."
    if name == "search":
        description += (
            " To search a table of other measurements instead: fretsaw search --library TABLE.json "
            "--limit NAME=VALUE --out DIR."
        )
    if name == "bench":
        description += (
            " To measure a server, any that speaks OpenAI's API, or a checkpoint behind ours: "
            "fretsaw bench URL|CHECKPOINT --help."
        )
    if kind.is_distributed:
        description += f" On several processes: torchrun --nproc-per-node 2 -m fretsaw {name} ..."
    options = _parse(cls, name, argv, description)
    inputs: dict[str, Path] = {}
    settings = options.settings
    if "problems" in kind.inputs:
        settings, files = _task_files(settings)
        inputs |= files
    for input_name in kind.inputs:
        value = getattr(options, input_name, None)
        if isinstance(value, list):
            inputs |= {f"{input_name}{i or ''}": Path(one) for i, one in enumerate(value)}
        elif value is not None:
            inputs[input_name] = resolve(value)
    common = options.common
    run_stage(
        name,
        settings,
        inputs,
        seed=common.seed,
        out=common.out,
        device=common.device,
        dtype=common.dtype,
        workers=getattr(options, "workers", HERE),
    )


def _task_files(settings: Any) -> tuple[Any, dict[str, Path]]:
    """Take the user's own file out of --task: a file is an input, so that its content counts."""
    names = settings.task.split(" + ")
    files = [name.strip() for name in names if name.strip().endswith((".jsonl", ".parquet"))]
    if len(files) > 1:
        raise ValueError(f"--task {settings.task}: {len(files)} files; give one, or join them")
    task = " + ".join(name for name in names if name.strip() not in files)
    return dataclasses.replace(settings, task=task), {"problems": Path(files[0])} if files else {}


def _documented(field: tuple, text: str) -> tuple:
    name, kind, *default = field
    return (name, Annotated[kind, tyro.conf.arg(help=text)], *default)


def stage_process(argv: list[str]) -> None:
    """Run the stage that a request file describes; what a launcher starts."""
    from fretsaw.launch import run_request

    run_request(Path(argv[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFileOptions:
    """Search a table of other people's measurements."""

    library: Path
    """JSON: layers -> alternatives -> score and named costs (docs/search.md)."""
    limit: list[str]
    """Upper bounds, such as runtime_ms=20 memory_mib=900."""
    out: Path
    """A new folder for solutions.json."""
    num_solutions: int = 1
    """Solutions, best first."""


def _search_file(argv: list[str]) -> None:
    from fretsaw.puzzle.search import search_file

    options = tyro.cli(
        SearchFileOptions,
        args=argv,
        prog="fretsaw search",
        description="Choose one alternative per subblock of a table, exactly.",
        config=(tyro.conf.UseAppendAction,),
    )
    solutions = search_file(options.library, options.limit, options.out, options.num_solutions)
    best = solutions[0]
    costs = ", ".join(f"{name} {value:.6g}" for name, value in best.costs.items())
    print(f"score {best.score:.6f}  {costs}  -> {options.out / 'solutions.json'}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchServerOptions:
    """What clients of a server see."""

    server: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL|CHECKPOINT")]
    """Where an OpenAI-compatible server answers, or a checkpoint to serve meanwhile."""
    scenario: str = "batch=8,in=64,out=64"
    """Requests at once, tokens of a prompt, tokens that are generated."""
    requests: int = 0
    """Requests in all; 0: four of every client."""
    warmup: int = 1
    """Requests of every client before, which do not count."""
    model: str = ""
    """What the server calls the model; by default the first it names."""
    api_key: str = ""
    """A key that requests carry; also read from FRETSAW_API_KEY."""
    vocab_size: int = 0
    """Prompts are random ids below it; 0: a checkpoint's own vocabulary, 256 at a URL."""
    timeout_s: float = 600.0
    """How long a server may say nothing."""
    seed: int | None = None
    """Seed of the prompts; by default drawn anew, since a server may know earlier prompts."""
    out: Path | None = None
    """A new file for the figures and every request's times, as JSON."""


def _bench_server(argv: list[str]) -> None:
    """Run `fretsaw bench URL` or `fretsaw bench CHECKPOINT`."""
    options = tyro.cli(
        BenchServerOptions,
        args=argv,
        prog="fretsaw bench",
        description="Measure time to first token, time between tokens and tokens/s under load. To "
        "compare a child with its parent: fretsaw bench --parent DIR --child DIR --out DIR.",
    )
    from fretsaw.artifact import write_json
    from fretsaw.bench.load import Load, Server, measure_load, render_load, summarise
    from fretsaw.scenario import Scenario

    if options.out is not None and options.out.exists():
        raise ValueError(f"--out {options.out}: already there; choose another file")
    scenario = Scenario.parse(options.scenario)
    load = Load(
        clients=scenario.batch,
        requests=options.requests or 4 * scenario.batch,
        prompt_tokens=scenario.prompt_tokens,
        output_tokens=scenario.output_tokens,
        vocab_size=options.vocab_size,
        seed=secrets.randbelow(2**31) if options.seed is None else options.seed,
    )
    key = options.api_key or os.environ.get("FRETSAW_API_KEY", "")
    server = Server(options.server, options.model, key, options.timeout_s)
    load, seen = measure_load(server, load, warmup=options.warmup)
    found = summarise(seen)
    print(render_load(options.server, load, found))
    if options.out is not None:
        requests = [dataclasses.asdict(one) for one in seen]
        write_json(options.out, {"load": dataclasses.asdict(load), **found, "each": requests})


# --- whole jobs -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """Which stages run, and with what."""

    only: str | None = None
    """Run this stage alone."""
    start_from: str | None = None
    """Begin at this stage."""
    force_from: str | None = None
    """Make this stage and all after it again, whatever is there."""
    set: Repeated = dataclasses.field(default_factory=list)
    """A setting to change, as stage.key=value; may be given again."""
    nproc: int = 1
    """Processes of each stage that trains; short for --launcher "torchrun --nproc-per-node N"."""
    launcher: str = ""
    """What starts the stages that train: a command that runs Python, such as "torchrun
    --nproc-per-node 8" or "srun --nodes 2 torchrun ..."."""
    workers: Workers = HERE
    dry_run: bool = False
    """Print the resolved settings and what would run, as JSON, and do nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of `fretsaw compress`."""

    checkpoint: Checkpoint
    """A folder with a Llama-shaped checkpoint, or a Hub id."""
    data: list[str]
    """Text files (.txt, .jsonl, .parquet), a Hub dataset, or `self`: sampled from the model."""
    target: str
    """What the child must reach: "1.5x decode", "2x prefill", "60% memory", "0.7x params", "24GB";
    several joined by commas."""
    scenario: str | None = None
    """What is served; times are measured there. By default 64 rows of 64 tokens in and 64 out."""
    tokens: int = 4_000_000
    """Training text taken from the data at most."""
    heal_tokens: int = 1_000_000
    """Tokens of the child's distillation."""
    candidates: int = 1
    """Children that are healed briefly, before the best of them is healed at length."""
    verify: bool = False
    """Build and measure a few whole children, correct the scores by them, and take the best."""
    bld_tokens: int = 0
    """Train every layer's alternatives on so many tokens before they are scored; 0: only repair."""
    fuse: bool = False
    """Fuse the child's neighbouring FFNs without attention between them, before it is healed."""
    engine: Engine = "vllm"
    """What will serve the child; what it does not run is not chosen (see `fretsaw export`)."""
    seq_len: int | None = None
    """Tokens of one row of text; by default 256, or the model's context where that is shorter."""
    common: Common
    steering: Steering


def compress(argv: list[str]) -> None:
    """Run `fretsaw compress`."""
    options = tyro.cli(
        CompressOptions,
        args=_spell_out_from(argv),
        prog="fretsaw compress",
        description="Compress a Llama checkpoint to a target; heal, measure and report the child.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    from fretsaw.compress import compress_stages

    stages = compress_stages(
        options.checkpoint,
        data=options.data,
        target=options.target,
        scenario=options.scenario,
        device=options.common.device,
        tokens=options.tokens,
        heal_tokens=options.heal_tokens,
        candidates=options.candidates,
        verify=options.verify,
        bld_tokens=options.bld_tokens,
        fuse=options.fuse,
        engine=options.engine,
        seq_len=options.seq_len,
    )
    _run_stages(f"compress {options.checkpoint}", stages, options.common, options.steering)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecipeOptions:
    """Options of `fretsaw run`."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A shipped recipe's name or a .py file whose recipe() returns the stages."""
    arg: Repeated = dataclasses.field(default_factory=list)
    """An argument of recipe(), as key=value; may be given again."""
    fast: bool = False
    """Short for --arg fast=true: the smaller preset, where the recipe has one."""
    common: Common
    steering: Steering


def run(argv: list[str]) -> None:
    """Run `fretsaw run`."""
    from fretsaw.recipe import find_recipe, load_recipe

    options = tyro.cli(
        RunRecipeOptions,
        args=_spell_out_from(argv),
        prog="fretsaw run",
        description="Run a recipe: skip what is done and valid, redo what is stale.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    arguments = ({"fast": True} if options.fast else {}) | _arguments(options.arg)
    stages = load_recipe(find_recipe(options.recipe), arguments)
    _run_stages(options.recipe, stages, options.common, options.steering)


def _arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read a recipe's arguments: key=value, the value as JSON where it is that."""
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--arg {text}: write key=value")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


def _run_stages(name: str, stages: list, common: Common, steering: Steering) -> None:
    from fretsaw import pipeline

    options = pipeline.RunOptions(
        name=name,
        out=common.out,
        device=common.device,
        dtype=common.dtype,
        seed=common.seed,
        only=steering.only,
        start_from=steering.start_from,
        force_from=steering.force_from,
        workers=steering.workers,
        launcher=steering.launcher or _torchrun(steering.nproc),
    )
    stages = pipeline.apply_overrides(stages, steering.set)
    pipeline.run(stages, options, dry_run=steering.dry_run)


def _torchrun(nproc: int) -> str:
    if nproc < 1:
        raise ValueError(f"--nproc {nproc}: at least one process is needed")
    return f"torchrun --standalone --nproc-per-node {nproc}" if nproc > 1 else ""


def _spell_out_from(argv: list[str]) -> list[str]:
    return ["--start-from" if arg == "--from" else arg for arg in argv]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `fretsaw plan`."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|RECIPE")]
    """A folder with a config.json or a Hub id (weights are not needed); or a recipe, by name or as
    a .py file, of which every stage is forecast; without --gpu a published model's recipe is set
    beside its paper."""
    gpu: str = ""
    """Of a recipe: what it runs on, such as h100 or h100x8; by default this machine's cpu."""
    price: float | None = None
    """Of a recipe: dollars that one device costs an hour."""
    measured: Path | None = None
    """Of a recipe: a run on the same hardware, whose stages tell how fast theirs are."""
    rehearse: bool = False
    """Of a recipe: do two real steps of every stage here, with random weights of the true shapes,
    and correct the forecast by them."""
    arg: Repeated = dataclasses.field(default_factory=list)
    """An argument of recipe(), as key=value; may be given again."""
    set: Repeated = dataclasses.field(default_factory=list)
    """Of a recipe: a setting of a stage, as stage.key=value; may be given again."""
    target: str = "1.5x decode"
    """What the child must reach."""
    scenario: str = "batch=64,in=1024,out=1024,dtype=bf16,device=h100"
    """What is served, and on which device."""
    calibration_tokens: int = 131_072
    """Tokens of ranking, repair and scoring."""
    distill_tokens: int = 1_000_000_000
    """Tokens of healing."""
    seq_len: int = 256
    """Tokens of one row of text."""
    micro_batch_tokens: int = 2048
    """Tokens of one forward and backward of healing."""


def plan(argv: list[str]) -> None:
    """Run `fretsaw plan`."""
    from fretsaw.plan.compression import make_plan, render_plan
    from fretsaw.plan.forecast import outside
    from fretsaw.recipe import is_recipe, published_of
    from fretsaw.scenario import Scenario

    options = tyro.cli(
        PlanOptions,
        args=argv,
        prog="fretsaw plan",
        description="Forecast memory, time, disk and the reachable front, from the config alone; "
        "of a recipe memory by phase, hours, tokens, disk and money of every stage. For example: "
        "fretsaw plan meta-llama/Llama-3.1-8B --target '2x decode'; "
        "fretsaw plan tiny --measured runs/tiny; "
        "fretsaw plan ln_super --gpu h100x8 --price 2.5; "
        "fretsaw plan ln_super (sizes and speeds beside its paper's).",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    published = published_of(options.checkpoint)
    of_recipe = {"gpu", "price", "measured", "rehearse", "arg", "set"}
    plain = PlanOptions(checkpoint=options.checkpoint)
    names = [field.name for field in dataclasses.fields(options)]
    asked = [name for name in names if getattr(options, name) != getattr(plain, name)]
    if published is not None and not asked:
        from fretsaw.published import render_published

        return print(render_published(published))
    is_one = is_recipe(options.checkpoint)
    for name in asked:
        option = "--" + name.replace("_", "-")
        if is_one and name not in of_recipe:
            raise ValueError(
                f"plan: {option} is of a checkpoint, and {options.checkpoint} is a recipe; change "
                "its stages with --arg NAME=VALUE or --set STAGE.KEY=VALUE"
            )
        if not is_one and name in of_recipe:
            raise ValueError(
                f"plan: {option} is of a recipe, and {options.checkpoint} is none; a checkpoint's "
                "device stands in --scenario"
            )
    if is_one:
        return _plan_recipe(options, published)
    plan = make_plan(
        outside(options.checkpoint),
        scenario=Scenario.parse(options.scenario),
        target=options.target,
        calibration_tokens=options.calibration_tokens,
        distill_tokens=options.distill_tokens,
        seq_len=options.seq_len,
        micro_batch_tokens=options.micro_batch_tokens,
    )
    print(render_plan(plan))


def _plan_recipe(options: PlanOptions, published: Any) -> None:
    from fretsaw.pipeline import apply_overrides
    from fretsaw.plan.forecast import calibrate, foresee, inputs_of, outside
    from fretsaw.plan.table import render_forecast
    from fretsaw.plan.work import Hardware
    from fretsaw.progress import say
    from fretsaw.recipe import FILES, find_recipe, load_recipe, needed_arguments

    if options.price is not None and not options.price >= 0:
        raise ValueError(f"--price {options.price}: dollars a device and hour are 0 or more")
    if options.measured is not None and options.rehearse:
        raise ValueError("plan: --measured and --rehearse both tell the speed; give one of them")
    hardware = Hardware.of(options.gpu or "cpu")
    path, arguments = find_recipe(options.checkpoint), _arguments(options.arg)
    stand_ins = {name: name for name in needed_arguments(path) if name not in arguments}
    stages = apply_overrides(load_recipe(path, {**stand_ins, **arguments}), options.set)
    for name, value in (one for stage in stages for one in inputs_of(stage)):
        if value in stand_ins and name not in FILES:
            raise ValueError(f"plan: the recipe needs {value}; give --arg {value}=CHECKPOINT")
    if stand_ins:
        say(
            f"plan: {', '.join(stand_ins)} not given (--arg NAME=FILE), so the length of that text "
            "is what the settings say"
        )

    def config_of(name: str) -> Any:
        if published is None or name in map(str, arguments.values()):
            return outside(name)
        return published.models["parent"]

    calibration, earlier = None, options.measured
    if earlier is not None:
        calibration = calibrate(earlier, hardware, config_of)
    if options.rehearse:
        from fretsaw.launch import settle
        from fretsaw.plan.rehearse import rehearse, require_device

        require_device(hardware)
        device, dtype = settle("cpu" if hardware.device.name == "cpu" else "cuda", "auto")
        calibration = rehearse(stages, hardware, config_of, device=device, dtype=dtype)
    forecast = foresee(stages, hardware, config_of, calibration, earlier=earlier)
    print(render_forecast(forecast, title=options.checkpoint, price=options.price))


def _one_path(argv: list[str], name: str, summary: str) -> Path:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(f"usage: fretsaw {name} PATH\n\n{summary}")
        raise SystemExit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    return Path(argv[0])


def status(argv: list[str]) -> None:
    """Run `fretsaw status`."""
    path = _one_path(
        argv, "status", "What a run is doing: stage, step, ETA, last metrics, the tail of an error."
    )
    from fretsaw.status import render_status

    print(render_status(path))


def lineage(argv: list[str]) -> None:
    """Run `fretsaw lineage`."""
    path = _one_path(argv, "lineage", "Where an artifact came from: its inputs, and theirs.")
    from fretsaw.lineage import render_lineage

    print(render_lineage(path))


def inspect(argv: list[str]) -> None:
    """Run `fretsaw inspect`."""
    path = _one_path(argv, "inspect", "What a checkpoint is made of, layer by layer.")
    from fretsaw.checkpoint.folder import read_config, resolve
    from fretsaw.inspect import render_config

    print(render_config(read_config(resolve(path, weights=False))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `fretsaw export`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    out: Path
    """A new folder, or a new file NAME.gguf."""
    target: Annotated[
        str, tyro.conf.arg(metavar="{auto,portable,vllm,llama.cpp,mlx,transformers,nvidia}")
    ] = "auto"
    """Who will read it. auto: portable, or vllm with weights in 8 bits. portable: any of
    transformers, vLLM, llama.cpp and mlx-lm. An engine's own name leaves out what that one does not
    need, so layers stay smaller. transformers: the layers as they are. nvidia: as they are, in
    NVIDIA's published spelling, or refused."""
    format: Annotated[str, tyro.conf.arg(metavar="{auto,decilm,gguf}")] = "auto"
    """decilm: a folder in Hugging Face layout, a plain Llama where all layers are the same. gguf:
    llama.cpp's file. auto: what --out and the target say."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{auto,fp32,bf16,fp16,q8_0}")] = "auto"
    """Precision of the weights; auto is the checkpoint's own, q8_0 is for gguf."""
    weights: Literal["auto", "full", "fp8", "int8"] = "auto"
    """The layers' matrices in 8 bits, a scale a row, as compressed-tensors that vLLM reads;
    activations are scaled as they come. auto: as the search chose, in full where it didn't."""


def export(argv: list[str]) -> None:
    """Run `fretsaw export`."""
    options = tyro.cli(
        ExportOptions,
        args=argv,
        prog="fretsaw export",
        description="Write a checkpoint for other engines. What the target can't express is "
        "rewritten exactly, or refused with the reason; the result is read back and its logits "
        "compared with the source's before it takes its name. For example: "
        "fretsaw export RUN/distill --out child; "
        "fretsaw export RUN/distill --out child.gguf --target llama.cpp --dtype q8_0; "
        "fretsaw export RUN/distill --out child-fp8 --weights fp8.",
    )
    from fretsaw.export import export

    exported = export(
        options.checkpoint,
        options.out,
        target=options.target,
        format=options.format,
        dtype=options.dtype,
        weights=options.weights,
    )
    print(exported.render())


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of `fretsaw generate`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """A text to continue; it streams to stdout. Or give --prompts and --out."""
    prompts: Path | None = None
    """Many prompts: .txt with one a line, or .jsonl or .parquet rows of `prompt` or `messages`."""
    out: Path | None = None
    """Where their answers go, as JSONL; an interrupted run goes on by the same command."""
    thinking: Literal["on", "off"] | None = None
    """Put plain prompts as a user's turn to a chat checkpoint, with reasoning on or off."""
    num_samples: int = 1
    """Answers to each of --prompts."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""


def generate(argv: list[str]) -> None:
    """Run `fretsaw generate`."""
    options = tyro.cli(
        GenerateOptions,
        args=argv,
        prog="fretsaw generate",
        description="Continue a prompt, or answer many of a file into a JSONL file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("generate: give one PROMPT, or --prompts FILE --out FILE")
    if (options.prompts is None) != (options.out is None):
        raise ValueError("generate: --prompts and --out go together")
    import fretsaw
    from fretsaw.chat import Message

    model = fretsaw.load(options.checkpoint, device=options.device, dtype=options.dtype)
    if options.prompts is not None and options.out is not None:
        from fretsaw.generate import generate_file

        num_written = generate_file(
            model,
            options.prompts,
            options.out,
            options.sampling,
            mode=options.thinking,
            num_samples=options.num_samples,
            origin=options.checkpoint,
        )
        print(f"{num_written} answers -> {options.out}")
        return
    assert options.prompt is not None
    if options.thinking is None:
        print(options.prompt, end="", flush=True)
        pieces = model.stream(options.prompt, options.sampling)
    else:
        turns = [Message("user", options.prompt)]
        pieces = model.chat(turns, options.thinking, options.sampling)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `fretsaw chat`."""

    checkpoint: Checkpoint
    """A folder with a chat checkpoint, or a Hub id."""
    thinking: Literal["on", "off"] = "on"
    """Reason before answering; /think and /no_think change it on the way."""
    system: str = ""
    """A system text of your own; the toggle's line is put before it."""
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(max_tokens=512))
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""


def chat(argv: list[str]) -> None:
    """Run `fretsaw chat`."""
    options = tyro.cli(
        ChatOptions,
        args=argv,
        prog="fretsaw chat",
        description="Talk to a chat checkpoint. Turns may be piped in too, one a line.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    import fretsaw
    from fretsaw.terminal import converse

    converse(
        fretsaw.load(options.checkpoint, device=options.device, dtype=options.dtype),
        mode=options.thinking,
        system=options.system,
        sampling=options.sampling,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `fretsaw serve`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other machines in (give an --api-key then)."""
    port: int = 8000
    """0 takes a free port, which is printed."""
    api_key: Repeated = dataclasses.field(default_factory=list)
    """A key that requests must carry; may be given again. Also read from FRETSAW_API_KEY."""
    name: str | None = None
    """What requests call the model; by default the folder's name."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""
    fp8: bool = False
    """Cast matrices to FP8: faster on an accelerator that multiplies it, and less exact."""
    cuda_graphs: bool = False
    """Replay decoding steps instead of launching them; on an accelerator alone."""
    max_batch: int = 64
    """Answers written at once; further ones wait."""
    memory_mib: float | None = None
    """Memory of the KV pages; by default what --max-batch sequences of the full context take."""
    grace_s: float = 30.0
    """Seconds that running answers get after SIGTERM or Ctrl-C; a second one ends at once."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    log: bool = False
    """Print a line a request."""


def serve(argv: list[str]) -> None:
    """Run `fretsaw serve`."""
    options = tyro.cli(
        ServeOptions,
        args=argv,
        prog="fretsaw serve",
        description=(
            "Answer over HTTP as OpenAI's API does, until Ctrl-C: /v1/chat/completions, "
            "/v1/completions, /v1/models, /tokenize, /metrics; a chat page is at /. Reasoning is "
            "switched by the system prompt (detailed thinking on|off), by chat_template_kwargs "
            "{enable_thinking: ...} or by reasoning_effort (none: off)."
        ),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    from fretsaw.serve.run import serve as run_server

    keys = [*options.api_key, *filter(None, [os.environ.get("FRETSAW_API_KEY")])]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    del given["checkpoint"], given["api_key"]
    run_server(options.checkpoint, api_keys=keys, **given)
