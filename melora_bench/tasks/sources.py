"""Where the rows of a task come from: a hub repository, a folder, or the package index. All end as files in a folder."""

import reprlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from melora_bench.external.embedded import GROUND_TRUTH, vader_folder
from melora_bench.external.hub import hub_snapshot
from melora_bench.external.reading import is_text, read_jsonl, reading
from melora_bench.files import sha256_file


def _read_jsonl(path: Path, texts: list[str]) -> pd.DataFrame:
    rows = read_jsonl(path)
    odd = [row for row in rows if not isinstance(row, dict)]
    if odd:
        raise ValueError(f"{path} must have one object of columns per line, not {reprlib.repr(odd[0])}")
    return pd.DataFrame(rows, dtype=object)


def _read_csv(path: Path, texts: list[str]) -> pd.DataFrame:
    # A text may be the word "None", "NA" or a number: it stays as it stands.
    with reading(path):
        table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first column for an index then
            raise ValueError("rows have more cells than the header: texts with a comma need quotation marks")
        return table


def _read_parquet(path: Path, texts: list[str]) -> pd.DataFrame:
    with reading(path):
        return pd.read_parquet(path)


READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
WHOLE = (".json", ".jsonl", ".parquet")
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

    def benchmark_root(self) -> str | None:
        """The folder with one folder per benchmark. Raises ValueError without it."""
        if not self.root or not Path(self.root).is_dir():
            raise ValueError(
                f"data.root={self.root} is no folder: give one with mmlu/, bbh/, drop/ or humaneval/ in it"
            )
        return self.root

    def whole(self, name: str, repo: str, revision: str) -> tuple[Path, dict]:
        """The one file of rows in `root` or `root/<name>`, and what to record of it. Raises ValueError unless it is one."""
        if not self.root:
            raise ValueError("data=local needs data.root=FILE or DIR with one .json, .jsonl or .parquet, plain or .gz")
        root = Path(self.root)
        places = [root] if root.is_file() else sorted([*root.glob("*"), *root.glob(f"{name}/*")])
        files = [path for path in places if Path(path.name.removesuffix(".gz")).suffix in WHOLE]
        if len(files) != 1:
            there = ", ".join(path.name for path in files) or "none"
            raise ValueError(f"data.root={self.root} must be or hold one {', '.join(WHOLE)} file, plain or .gz: there "
                             f"{'are' if files else 'is'} {there}")  # fmt: skip
        return files[0], {"file": files[0].name}


@dataclass(kw_only=True)
class HubData:
    """Parquet files `<task>/<split>-*.parquet` of a dataset repository, as nyu-mll/glue has them."""

    repo: str
    revision: str
    commit: str | None = field(default=None, init=False)  # of the first split: a branch may move before the second

    def find(self, task: str, split: str) -> tuple[list[Path], dict]:
        """As LocalData.find; the commit that `revision` resolved to is recorded. Raises ValueError without the hub."""
        if task in GROUND_TRUTH:
            raise ValueError(f"task={task} is not in {self.repo}: use data=embedded")
        patterns, revision = [f"{task}/{split}-*.parquet"], self.commit or self.revision
        folder, self.commit = hub_snapshot(self.repo, revision, kind="dataset", patterns=patterns, offline=OFFLINE)
        files = sorted((folder / task).glob(f"{split}-*.parquet"))
        parts = int(files[0].stem.rpartition("-of-")[2]) if files else 1  # train-00000-of-00002
        if len(files) != parts:
            raise ValueError(f"{self.repo} at {self.revision!r} or, without a network, its cache holds {len(files)} of "
                             f"{parts:05d} files {task}/{split}-*.parquet; {OFFLINE}")  # fmt: skip
        return files, {"repo": self.repo, "commit": self.commit}

    def benchmark_root(self) -> str | None:
        """None: each benchmark has a repository of its own."""
        return None

    def whole(self, name: str, repo: str, revision: str) -> tuple[Path, dict]:
        """The one file of rows of a dataset repository. Raises ValueError without the hub, or unless it is one."""
        patterns = [f"*{ending}" for ending in WHOLE]
        offline = "offline, use data=local data.root=FILE"
        folder, commit = hub_snapshot(repo, revision, kind="dataset", patterns=patterns, offline=offline)
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in WHOLE and path.is_file()]
        if len(files) != 1:
            raise ValueError(
                f"{repo} at {revision!r} holds {len(files)} files of rows, not one: use data=local data.root=FILE"
            )
        return files[0], {"repo": repo, "commit": commit, "file": files[0].name}


@dataclass(kw_only=True)
class EmbeddedData:
    """The tasks movie and tweets from the package index (melora_bench/external/embedded.py)."""

    def find(self, task: str, split: str) -> tuple[list[Path], dict]:
        """As LocalData.find. Raises ValueError for another task, or when the package cannot be had."""
        if task not in GROUND_TRUTH:
            raise ValueError(f"task={task} is not embedded: use data=hub, or data=local data.root=DIR")
        return [vader_folder() / task / f"{split}.csv"], {"package": "vaderSentiment==3.3.2"}

    def benchmark_root(self) -> str | None:
        """Raises ValueError: no package of the index carries these benchmarks."""
        raise ValueError("the benchmarks are not embedded: use data=hub, or data=local data.root=DIR")

    def whole(self, name: str, repo: str, revision: str) -> tuple[Path, dict]:
        """Raises ValueError: no package of the index carries instructions that are free to use."""
        raise ValueError(
            f"task={name} is not embedded: use data=hub, or data=local data.root=FILE with your copy of {repo}"
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split."""

    texts: list[list[str]]  # per text column
    labels: np.ndarray  # (rows,) float64
    origin: dict  # for the record: rows, sha256 of each file, repo and commit or file name


def load_rows(source, task: str, split: str, texts: list[str], limit: int | None, optional: bool) -> Rows | None:
    """Read the text columns and `label` of one split; the first `limit` rows of a fixed shuffle if a limit is given.

    Returns None for a missing split that is optional. Raises ValueError, naming the file, for a missing file or column,
    an unreadable file, an empty split, and a text or label that is none.
    """
    files, origin = source.find(task, split)
    if not files:
        if optional:
            return None
        raise ValueError(source.missing(task, split))
    parts = [READERS[path.suffix[1:]](path, texts) for path in files]
    with reading(files[0]):
        table = pd.concat(parts, ignore_index=True)
    if table.empty:
        raise ValueError(f"{files[0]} has no rows: the {split} split of {task} is empty")
    for name in (*texts, "label"):
        if name not in table:
            raise ValueError(f"{files[0]} has no column {name!r}; it has {reprlib.repr(list(table.columns))[1:-1]}")
        if list(table.columns).count(name) > 1:
            raise ValueError(f"{files[0]} has several columns {name!r}")
    for name in texts:
        wrong = [row for row, text in enumerate(table[name]) if not is_text(text)]
        if wrong:
            found = reprlib.repr(table[name].iloc[wrong[0]])
            raise ValueError(f"{files[0]}: {name} is {found} in row {wrong[0]}, not a text")
    scalars = table["label"].where(table["label"].map(np.isscalar))  # to_numeric raises for a list
    with reading(files[0]):
        labels = pd.to_numeric(scalars, errors="coerce").astype(np.float64)
    if labels.isna().any():
        row = int(labels.isna().argmax())
        raise ValueError(f"{files[0]}: label is {reprlib.repr(table['label'].iloc[row])} in row {row}, not a number")
    if limit is not None and limit < len(table):
        chosen = np.random.default_rng(0).permutation(len(table))[:limit]
        table, labels = table.iloc[chosen], labels.iloc[chosen]
    origin = {"rows": len(table), "sha256": [sha256_file(path) for path in files], **origin}
    return Rows(texts=[table[name].tolist() for name in texts], labels=labels.to_numpy(), origin=origin)
