"""Where the rows of a task come from: a hub repository, a folder, or the package index.
All end as files in a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melora_bench.external.embedded import GROUND_TRUTH, vader_folder
from melora_bench.external.hub import hub_snapshot
from melora_bench.tasks.base import Files

ENDINGS = (".parquet", ".jsonl", ".csv")  # of the files of a split; the first that is there is read
WHOLE = (".json", ".jsonl", ".parquet")
OFFLINE = "offline, use data=local data.root=DIR, or data=embedded with task=movie or task=tweets"


@dataclass(kw_only=True)
class LocalData:
    """Files `<root>/<task>/<split>.parquet|jsonl|csv` in the columns of the hub's dataset."""

    root: str | None
    splits: dict[str, str]  # split -> file name without its ending, so that a subset is used on purpose only

    def split_files(self, task: str, split: str) -> Files:
        """The file of one split, or none. Raises ValueError when the folder is missing."""
        if not self.root:
            raise ValueError("data=local needs data.root=DIR, a folder with <task>/<split>.parquet, .jsonl or .csv")
        folder = Path(self.root) / task
        if not folder.is_dir():
            raise ValueError(f"data.root={self.root} has no folder {task}/ with its splits as .parquet, .jsonl or .csv")
        name = self.splits.get(split, split)
        paths = [path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()]
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        absent = (
            f"data.root={self.root} has no {task}/{name}.parquet, .jsonl or .csv (there: {there}); "
            f"name the file of this split with data.splits.{split}=NAME"
        )
        return Files(paths=paths[:1], origin={"file": name}, absent="" if paths else absent)

    def benchmark_folder(self) -> str | None:
        """The folder with one folder per benchmark. Raises ValueError without it."""
        if not self.root or not Path(self.root).is_dir():
            raise ValueError(
                f"data.root={self.root} is no folder: give one with mmlu/, bbh/, drop/ or humaneval/ in it"
            )
        return self.root

    def single_file(self, name: str, repo: str, revision: str) -> tuple[Path, dict[str, Any]]:
        """The one file of rows in `root` or `root/<name>`, and what to record of it.
        Raises ValueError unless it is one."""
        if not self.root:
            raise ValueError("data=local needs data.root=FILE or DIR with one .json, .jsonl or .parquet, plain or .gz")
        root = Path(self.root)
        places = [root] if root.is_file() else sorted([*root.glob("*"), *root.glob(f"{name}/*")])
        files = [path for path in places if Path(path.name.removesuffix(".gz")).suffix in WHOLE]
        if len(files) != 1:
            there = ", ".join(path.name for path in files) or "none"
            verb = "are" if files else "is"
            raise ValueError(
                f"data.root={self.root} must be or hold one {', '.join(WHOLE)} file, plain or .gz: there {verb} {there}"
            )
        return files[0], {"file": files[0].name}


@dataclass(kw_only=True)
class HubData:
    """Parquet files `<task>/<split>-*.parquet` of a dataset repository, as nyu-mll/glue has them."""

    repo: str
    revision: str
    commit: str | None = field(default=None, init=False)  # of the first split: a branch may move before the second

    def split_files(self, task: str, split: str) -> Files:
        """All parts of one split; the commit that `revision` resolved to is recorded.
        Raises ValueError without the hub."""
        if task in GROUND_TRUTH:
            raise ValueError(f"task={task} is not in {self.repo}: use data=embedded")
        patterns, revision = [f"{task}/{split}-*.parquet"], self.commit or self.revision
        folder, self.commit = hub_snapshot(self.repo, revision, kind="dataset", patterns=patterns, offline=OFFLINE)
        files = sorted((folder / task).glob(f"{split}-*.parquet"))
        parts = int(files[0].stem.rpartition("-of-")[2]) if files else 1  # train-00000-of-00002
        if len(files) != parts:
            raise ValueError(
                f"{self.repo} at {self.revision!r} or, without a network, its cache holds {len(files)} of {parts:05d} "
                f"files {task}/{split}-*.parquet; {OFFLINE}"
            )
        return Files(paths=files, origin={"repo": self.repo, "commit": self.commit})

    def benchmark_folder(self) -> str | None:
        """None: each benchmark has a repository of its own."""
        return None

    def single_file(self, name: str, repo: str, revision: str) -> tuple[Path, dict[str, Any]]:
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

    def split_files(self, task: str, split: str) -> Files:
        """The file of one split. Raises ValueError for another task, or when the package cannot be had."""
        if task not in GROUND_TRUTH:
            raise ValueError(f"task={task} is not embedded: use data=hub, or data=local data.root=DIR")
        path = vader_folder() / task / f"{split}.csv"
        return Files(paths=[path], origin={"package": "vaderSentiment==3.3.2"})

    def benchmark_folder(self) -> str | None:
        """Raises ValueError: no package of the index carries these benchmarks."""
        raise ValueError("the benchmarks are not embedded: use data=hub, or data=local data.root=DIR")

    def single_file(self, name: str, repo: str, revision: str) -> tuple[Path, dict[str, Any]]:
        """Raises ValueError: no package of the index carries instructions that are free to use."""
        raise ValueError(
            f"task={name} is not embedded: use data=hub, or data=local data.root=FILE with your copy of {repo}"
        )
