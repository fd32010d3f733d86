"""The configs: every point of every table composes, recipes hold the papers' numbers, slips are refused."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from conftest import composed
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from melora_bench import methods
from melora_bench.files import ROOT
from melora_bench.grids.jobs import jobs
from melora_bench.grids.tables import load_table
from melora_bench.methods.base import Method
from melora_bench.training.configs import GROUPS, RunConfig, compose_run
from melora_bench.training.points import Point

CONFIGS = ROOT / "configs"


def options(group: str) -> list[str]:
    return sorted(
        path.relative_to(CONFIGS / group).with_suffix("").as_posix() for path in (CONFIGS / group).rglob("*.yaml")
    )


# lr, epochs, batch in MELoRA, batch in MPLoRA, length: MELoRA's appendix and scripts, MPLoRA's table 4.
GLUE = {
    "mnli": (5e-4, 30, 128, None, 256),
    "sst2": (5e-4, 60, 128, 64, 256),
    "mrpc": (4e-4, 30, 128, 64, 256),
    "cola": (4e-4, 80, 64, 64, 256),
    "qnli": (4e-4, 25, 128, 64, 256),
    "qqp": (4e-4, 25, 128, None, 256),
    "rte": (4e-4, 80, 128, 64, 512),
    "stsb": (4e-4, 40, 128, 64, 256),
}
# What a paper has in common over its tasks.
PAPERS = {
    "melora": {"head_lr_scale": 0.5, "weight_decay": 0.01},
    "mplora": {"head_lr_scale": 1.0, "weight_decay": 0.1, "no_decay": ["bias"]},
}
START_STEPS = {"sst2": 400, "mrpc": 10, "cola": 100, "qnli": 800, "rte": 200, "stsb": 200}  # Delta-LoRA's K
METRICS = {"cola": "matthews", "stsb": "pearson", "mnli": "accuracy_matched"}
ORTHOGONAL = {"rte": 0.3, "stsb": 0.3}  # AdaLoRA's official scripts; 0.1 elsewhere


@functools.cache
def grid(table: str, whole: bool) -> list[tuple[list[str], Point]]:
    """The points of a table, composed as a sweep would: all of them, or one of each task."""
    every = jobs(load_table(table), [])
    first = {job[0]: job for job in reversed(every)}  # by task=
    chosen = every if whole else list(first.values())
    return [(job, Point.of(*compose_run([f"table={table}", *job]))) for job in chosen]


in_part_and_whole = pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in part", "whole"]
)


@in_part_and_whole
@pytest.mark.parametrize("table", options("table"))
def test_every_point_of_a_table_composes_to_a_run_of_its_own(table, whole):
    found = grid(table, whole)
    seeds = OmegaConf.load(CONFIGS / "table" / f"{table}.yaml").seeds
    assert {job[0] for job, _ in found} == {f"task={task}" for task in load_table(table).trained_tasks}
    for job, point in found:
        assert point.config.seeds == seeds
        assert point.config.experiment == table
        for key, _, value in (override.partition("=") for override in job):
            group, _, name = key.partition(".")
            value_of_group = getattr(point.config, group, None)
            top = point.choices.get(group, value_of_group)
            assert str(value_of_group[name] if name else top) == value
    assert len({(point.choices["task"], point.name) for _, point in found}) == len(found)
    assert len({point.label for _, point in found}) == len(found)


@in_part_and_whole
@pytest.mark.parametrize(
    ("table", "paper"),
    [(name, table.paper) for name in options("table") if (table := load_table(name)).paper and not table.trained_on],
)
def test_a_papers_table_runs_its_own_recipe_on_its_own_backbone(table, paper, whole):
    for _, point in grid(table, whole):
        task, method = point.choices["task"], point.config.method
        assert point.choices["recipe"] == f"{paper}/{task}"
        assert (point.choices["backbone"], point.choices["data"]) == ("roberta_base", "hub")
        assert (point.config.lr, point.config.epochs) == GLUE[task][:2]
        assert point.config.bucket == 1  # random order
        assert point.config.max_train_rows is point.config.max_eval_rows is point.config.init_from is None
        dropout = 0 if point.choices["method"] in ("delta_lora", "dylora") else 0.05
        assert (method["alpha"], method["lora_dropout"], method["target_modules"]) == (16, dropout, ["query", "value"])
        assert method.get("orth_weight") in (None, ORTHOGONAL.get(task, 0.1))
        assert point.config.task["metric"] == METRICS.get(task, "accuracy")
    assert grid(table, whole)[0][1].config.seeds == {"melora": [0, 1, 2, 3, 4], "mplora": [0, 1, 2]}[paper]


@pytest.mark.parametrize("table", ["melora_table3", "melora_table5"])
def test_instruction_tuning_runs_the_papers_recipe(table):
    """PROTOCOLS: 3e-4, 100 warm-up steps, batch 128, 3 epochs, evaluated every 200 steps, cut at 256, W_q and W_v, rows
    of like length together."""
    keys = ("warmup_steps", "batch_size", "epochs", "eval_steps", "max_length", "weight_decay", "max_steps", "bucket")
    for _, point in grid(table, whole=True):
        config = point.config
        assert point.choices["recipe"] == "melora/alpaca" and point.choices["task"] == "alpaca"
        assert [getattr(config, key) for key in keys] == [100, 128, 3, 200, 256, 0.0, None, 50]
        assert config.task["loss_on_prompt"] is True and config.task["split_seed"] == 42
        if point.choices["method"] != "full":
            assert config.lr == 3e-4
            assert (config.method["alpha"], config.method["lora_dropout"]) == (16, 0.05)
            assert config.method["target_modules"] == ["q_proj", "v_proj"]
    backbones = {point.choices["backbone"] for _, point in grid(table, whole=True)}
    assert backbones == {"llama2_7b", *({"llama2_7b_nf4"} if table == "melora_table3" else set())}


def test_the_mnli_start_is_a_grid():
    """MNLI itself starts afresh; the others start from its adapters, each under its own recipe."""
    points = [point for _, point in grid("init_from_mnli", whole=False)]
    starts = {point.choices["task"]: point.config.init_from for point in points}
    assert starts == {"mnli": None, "mrpc": "mnli", "rte": "mnli", "stsb": "mnli"}
    assert {point.choices["recipe"] for point in points} == {f"melora/{task}" for task in starts}


@pytest.mark.slow
def test_every_recipe_is_used():
    used = {point.choices["recipe"] for table in options("table") for _, point in grid(table, whole=True)}
    default = composed([], return_hydra_config=True).hydra.runtime.choices["recipe"]
    assert default == "quick"
    assert set(options("recipe")) - used - {default} == set()


@pytest.mark.parametrize("paper", PAPERS)
def test_recipes_hold_the_papers_numbers_and_nothing_else(paper):
    expected = {}
    for task, (lr, epochs, first, second, length) in GLUE.items():
        size = {"melora": first, "mplora": second}[paper]
        if size:
            own = {"lr": lr, "epochs": epochs, "batch_size": size, "max_length": length}
            if task in START_STEPS:
                own["per_method"] = {"delta_lora": {"start_step": START_STEPS[task]}}
            if task in ORTHOGONAL:
                own["per_method"]["adalora"] = {"orth_weight": ORTHOGONAL[task]}
            expected[task] = own | PAPERS[paper] | {"warmup_ratio": 0.06, "max_grad_norm": 1.0}
    if paper == "melora":
        expected["alpaca"] = {
            "lr": 3e-4,
            "head_lr_scale": 1.0,
            "weight_decay": 0.0,
            "warmup_steps": 100,
            "max_grad_norm": 1.0,
            "epochs": 3,
            "eval_steps": 200,
            "batch_size": 128,
            "accumulation": 16,
            "max_length": 256,
            "bucket": 50,
        }
    folder = CONFIGS / "recipe" / paper
    found = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in folder.glob("*.yaml")}
    assert found == expected


def test_a_recipe_beats_train_yaml_and_the_command_line_beats_the_recipe():
    keys = ("epochs", "lr", "batch_size", "head_lr_scale", "max_length")
    assert [composed([])[key] for key in keys] == [2, 2e-3, 16, 1.0, 128]
    overrides = ["task=mrpc", "recipe=melora/mrpc", "backbone=roberta_base"]
    assert [composed(overrides)[key] for key in keys] == [30, 4e-4, 128, 0.5, 256]
    assert [composed([*overrides, "epochs=3", "lr=1"])[key] for key in keys] == [3, 1, 128, 0.5, 256]
    assert [composed(["epochs=3", "lr=1", *overrides])[key] for key in keys] == [3, 1, 128, 0.5, 256]
    assert composed(["task=rte", "recipe=melora/${task}"]).max_length == 512


def test_a_table_beats_its_recipe_and_the_command_line_beats_the_table():
    own = ["table=quickstart", "method=lora"]
    assert [composed([*own, *more])[key] for more in ([], ["lr=1"]) for key in ("lr", "epochs")] == [5e-3, 1, 1, 1]


@pytest.mark.parametrize(
    "override", ["epoch=1", "method.rnk=3", "data.rot=/x", "task.metrc=f1", "backbone.pth=/x", "seed=[1]"]
)
def test_a_misspelt_key_is_refused_by_name(override):
    with pytest.raises(ConfigCompositionException, match=f"Could not override '{override.partition('=')[0]}'"):
        composed([override])


@pytest.mark.parametrize("group", ["method", "task", "backbone", "data", "table"])
def test_an_unknown_option_is_refused_with_those_there_are(group):
    with pytest.raises(MissingConfigException) as caught:
        composed([f"{group}=nonsense"])
    message = str(caught.value)
    assert f"Could not find '{group}/nonsense'" in message
    listed = message.partition("Available options")[2].partition("Config search path")[0].split()[2:]
    assert listed == options(group)


@pytest.mark.parametrize("name", options("method"))
def test_a_methods_fields_are_its_yamls_keys(name):
    config = composed([f"method={name}"]).method
    method = instantiate(config, _convert_="all")
    assert isinstance(method, Method)
    assert config._target_.startswith("melora_bench.methods.")
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    assert values | {"_target_": config._target_} == OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("name", options("method"))
def test_a_methods_unknown_key_is_refused_when_it_is_built(name):
    config = composed([f"method={name}", "+method.rnk=3"]).method
    with pytest.raises(Exception, match="unexpected keyword argument 'rnk'"):
        instantiate(config, _convert_="all")


def test_every_module_with_a_method_has_a_yaml():
    modules = [
        importlib.import_module(f"melora_bench.methods.{m.name}") for m in pkgutil.iter_modules(methods.__path__)
    ]
    found = {
        m.__name__
        for m in modules
        for value in vars(m).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == m.__name__
    }
    targets = {composed([f"method={name}"]).method._target_.rpartition(".")[0] for name in options("method")}
    assert found - {Method.__module__} == targets


@pytest.mark.parametrize("group", ["method", "task"])
def test_the_training_loop_names_no_method_and_no_task(group):
    """`head` and `full` are also plain words, so for these methods only the class is looked for."""
    text = (ROOT / "melora_bench" / "training" / "trainer.py").read_text().replace("melora_bench", "")
    classes = {composed([f"{group}={name}"])[group]._target_.rsplit(".", 1)[1] for name in options(group)}
    names = (set(options(group)) | classes) - {"head", "full"}
    assert len(names) >= 5
    pattern = rf"(?<![a-z])({'|'.join(sorted(names))})(?![a-z])"
    assert re.findall(pattern, text, flags=re.IGNORECASE) == []
    assert re.findall(r"\.(?:methods|tasks)\.(?!base\b|batches\b)\w+", text) == []


def test_what_reads_records_does_not_import_torch():
    code = "import sys\nfrom melora_bench.results import tables\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_methods_import_torch_and_themselves_only():
    for path in (ROOT / "melora_bench" / "methods").glob("*.py"):
        lines = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        ours = ("torch", "melora_bench.methods", "melora_bench.seeding")
        others = [name for name in lines if not name.startswith(ours) and name not in sys.stdlib_module_names]
        assert [name for name in others if name.split(".")[0] not in sys.stdlib_module_names] == [], path


def test_a_run_has_the_keys_of_train_yaml():
    """And the config groups; `table` is there in a grid alone."""
    keys = set(OmegaConf.load(CONFIGS / "train.yaml")) - {"defaults", "hydra"}
    assert {item.name for item in dataclasses.fields(RunConfig)} == keys | set(GROUPS) - {"recipe"} | {"table"}


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["table=melora_table2", "task=mrpc", "method=melora", "method.n=4", "method.r=1"], "mrpc melora r=1 n=4"),
        (["table=melora_table2", "task=mrpc", "method=dylora"], "mrpc dylora"),
        (["task=movie", "method=melora", "method.n=2"], "movie melora"),
        (["task=movie", "method=melora", "method.n=4"], "movie melora n=4"),
    ],
)
def test_a_point_is_called_by_what_sets_it_apart(overrides, label):
    assert Point.of(*compose_run(overrides)).label == label


def test_the_quickstart_has_every_method():
    assert {row.settings["method"] for row in load_table("quickstart").rows} == set(options("method"))
