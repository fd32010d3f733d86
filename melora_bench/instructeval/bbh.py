"""BIG-Bench Hard, Suzgun et al. 2022, https://arxiv.org/abs/2210.09261: 27 tasks, here without chains of thought."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from melora_bench.external.reading import read_json
from melora_bench.instructeval.base import Benchmark, Question, Subject
from melora_bench.instructeval.question_files import read_parquet, text_of


@dataclass(kw_only=True)
class BBH(Benchmark):
    """A task's first `shots` rows are its shots and are not scored."""

    label: ClassVar[str] = "BBH"
    rule: ClassVar[str] = "every row of a task but its shots"
    hub_files: ClassVar[list[str]] = ["*/test*"]

    def read_hub(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """lukaemon/bbh: a folder per task with columns input and target."""
        names = {path.relative_to(folder).parts[0] for path in folder.glob("*/test*")}
        subjects, files = [], []
        for name in sorted(names):
            rows, paths = read_parquet(folder, name, "test", ["input", "target"])
            subjects.append(self._subject(name, rows, str(folder / name)))
            files += paths
        return subjects, files

    def read_original(self, folder: Path) -> tuple[list[Subject], list[Path]]:
        """bbh/<task>.json: {"examples": [{"input", "target"}]}."""
        files = sorted(folder.glob("bbh/*.json"))
        if not files:
            raise ValueError(f"{folder} has no bbh/<task>.json")
        subjects = []
        for path in files:
            content = read_json(path)
            if not isinstance(content, dict) or not isinstance(content.get("examples"), list):
                raise ValueError(f"{path} has no list 'examples'")
            subjects.append(self._subject(path.stem, content["examples"], str(path)))
        return subjects, files

    def _subject(self, name: str, rows: list[dict], place: str) -> Subject:
        questions = [
            Question(
                text=f"{text_of(row, 'input', f'{place}: row {number}')}\nAnswer:",
                target=text_of(row, "target", f"{place}: row {number}"),
            )
            for number, row in enumerate(rows)
        ]
        shots = [f"{shot.text} {shot.target}\n\n" for shot in questions[: self.shots]]
        return Subject(name=name, header="", shots=shots, questions=questions[self.shots :])
