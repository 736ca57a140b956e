"""Q-Bench in Chinese: the same questions with another instruction."""

from __future__ import annotations

from llava.eval.tasks.base import DataFile, Option, TaskData
from llava.eval.tasks.choice.qbench import SITE, QBench

LINE_BREAK = Option(
    "line-break", "what stands before the Chinese instruction", "backslash", ("backslash", "newline")
)


class QBenchZh(QBench):
    """The same in Chinese."""

    name, title, folder = "qbench_zh", "Q-Bench (Chinese)", "qbench"
    options = (LINE_BREAK,)
    data = (
        QBench.data[0],
        DataFile("question-file", "质衡-问答-{half}集.json", "the file of questions", SITE),
    )

    def where(self, file: DataFile, split: str) -> str:
        """Return the usual place; the files have Chinese names."""
        return file.where.format(half={"dev": "验证", "test": "测试"}[split])

    def instruction(self, data: TaskData) -> str:
        """Return the Chinese line; its backslash is a failed escape in the program that scores came from."""
        start = "\n" if data.options.get("line-break") == "newline" else "\\"
        return f"{start}在下列选项中选择一个:\n"
