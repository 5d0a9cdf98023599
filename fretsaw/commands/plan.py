"""`fretsaw plan`: forecasts of a checkpoint's compression, or of every stage of a recipe."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from fretsaw.commands.jobs import read_arguments
from fretsaw.commands.options import Repeated


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `fretsaw plan`."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|RECIPE")]
    """A folder with a config.json or a Hub id (weights are not needed); or a recipe, by name or as
    a .py file, of which every stage is forecast; a published model's recipe with no option at all
    is set beside its paper."""
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
    from fretsaw.pipeline.recipe import is_recipe, published_of
    from fretsaw.plan.compression import make_plan, render_plan
    from fretsaw.plan.shapes import outside
    from fretsaw.scenario.scenario import Scenario

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
        from fretsaw.plan.published import render_published

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
    from fretsaw.pipeline.kinds import FILES
    from fretsaw.pipeline.recipe import find_recipe, inputs_of, load_recipe, needed_arguments
    from fretsaw.pipeline.walk import apply_overrides
    from fretsaw.plan.forecast import calibrate, foresee
    from fretsaw.plan.render import render_forecast
    from fretsaw.plan.shapes import outside
    from fretsaw.plan.work import Hardware
    from fretsaw.stage.progress import say

    if options.price is not None and not options.price >= 0:
        raise ValueError(f"--price {options.price}: dollars a device and hour are 0 or more")
    if options.measured is not None and options.rehearse:
        raise ValueError("plan: --measured and --rehearse both tell the speed; give one of them")
    hardware = Hardware.of(options.gpu or "cpu")
    path, arguments = find_recipe(options.checkpoint), read_arguments(options.arg)
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
        calibration = calibrate(earlier, hardware)
    if options.rehearse:
        from fretsaw.pipeline.launch import settle
        from fretsaw.plan.rehearse import rehearse, require_device

        require_device(hardware)
        device, dtype = settle("cpu" if hardware.device.name == "cpu" else "cuda", "auto")
        calibration = rehearse(stages, hardware, config_of, device=device, dtype=dtype)
    forecast = foresee(stages, hardware, config_of, calibration, earlier=earlier)
    print(render_forecast(forecast, title=options.checkpoint, price=options.price))
