"""scripts/paper: what several seeds come to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import TOP

HEAD = "net,method,target,ranks,macs,params,accuracy,accuracy_tuned,milliseconds\n"


def test_seeds_are_told_by_mean_least_and_most(tmp_path: Path) -> None:
    for seed, score in ((1, 0.9), (2, 0.5), (3, 0.7)):
        (tmp_path / f"seed{seed}").mkdir()
        rows = f"plain,,whole,,2000000,100,0.98,,\nplain,pca,r 2,c={seed},1000000,50,{score},0.9,\n"
        (tmp_path / f"seed{seed}" / "cut.csv").write_text(f"# forcereg frontier --seed {seed}\n{HEAD}{rows}")
    script = [sys.executable, str(TOP / "scripts" / "paper" / "seeds.py"), "cut", "all.csv", "seed1", "seed2", "seed3"]
    made = subprocess.run(
        [*script, "--picture", "all.svg"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    row = next(line for line in made.stdout.splitlines() if "r 2" in line)
    assert "70.0 (50.0 to 90.0)" in row
    assert "90.0 (90.0 to 90.0)" in row
    assert "c=1 | c=2 | c=3" in row
    assert "98.0 (98.0 to 98.0)" in made.stdout
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines[:3] == [f"# seed{seed}: forcereg frontier --seed {seed}" for seed in (1, 2, 3)]
    assert lines[3] == "seed,net,method,target,ranks,macs,params,accuracy,accuracy_tuned"
    assert lines[7] == "2,plain,pca,r 2,c=2,1000000,50,0.5,0.9"
    assert len(lines) == 10
    assert "<svg" in (tmp_path / "all.svg").read_text()
