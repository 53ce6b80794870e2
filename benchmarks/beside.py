"""A way in a process of its own: of another checkout, or where nothing is compiled yet."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Beside(subprocess.Popen[str]):
    """A way that another process has made of a workload, and does there; by an unknown name, a network alone."""

    def __init__(self, checkout: Path, workload: str, way: str, cache: str = ""):
        path = os.pathsep.join(str(folder.resolve()) for folder in (checkout, checkout / "benchmarks"))
        env = os.environ | {"PYTHONPATH": path, "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, "-P", __file__, workload, way]
        super().__init__(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.networks = self.ask("__getattribute__", "networks")[0]

    def ask(self, method: str, *words: Any) -> list[Any]:
        """Return what a method returns there, and the seconds that it took, of the processor and of the clock."""
        print(json.dumps([method, *words]), file=self.stdin, flush=True)
        if not (line := self.stdout.readline()):  # type: ignore[union-attr]
            raise RuntimeError(f"the process of {self.args[-2:]} has ended; its error stands above")  # type: ignore[index]
        return json.loads(line)

    def train(self, steps: int) -> float:
        """Take steps; see `ways`."""
        return self.ask("train", steps)[0]

    def measure(self) -> list[float]:
        """Return loss and norm of the gradient of the first network."""
        return self.ask("measure")[0]


if __name__ == "__main__":
    import run  # these are of that checkout
    import ways

    (work, known), answers, sys.stdout = run.PARTS[sys.argv[1]], sys.stdout, sys.stderr
    way = known[sys.argv[2]](work) if sys.argv[2] in known else ways.Loop(work, ways.cells.unroll, fused=True)
    run.torch.set_num_threads(1)
    for line in sys.stdin:
        method, *words = json.loads(line)
        start = time.process_time(), time.perf_counter()
        value = getattr(way, method)(*words)
        seconds = time.process_time() - start[0], time.perf_counter() - start[1]
        print(json.dumps([value, *seconds]), file=answers, flush=True)
