"""Real processes: what is found is what belongs to the folder, and that alone is ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import children, end, running

HERE = Path(__file__).parents[2] / "deploy" / "cluster"

# The demo in little: it marks itself and starts one process, which says that it has started.
DEMO = f"""
import signal, subprocess, sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
from leftovers import mark
mark(Path(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.default_int_handler)
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
try:
    child.wait()
finally:
    child.terminate()
    child.wait()
"""


@pytest.fixture
def bystander():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def demo(folder: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_demo_that_runs_is_ended_with_its_children_and_nothing_else(tmp_path, bystander):
    with demo(tmp_path) as process:
        assert running(tmp_path) == process.pid
        assert len(children(tmp_path)) == 1
        assert end(tmp_path) == 2
        process.wait(30)
    assert running(tmp_path) is None
    assert children(tmp_path) == []
    assert bystander.poll() is None
    assert end(tmp_path) == 0


def test_what_a_killed_demo_left_is_ended(tmp_path, bystander):
    with demo(tmp_path) as process:
        process.kill()
        process.wait(30)
        assert running(tmp_path) is None
        assert len(children(tmp_path)) == 1
        assert end(tmp_path) == 1
    assert children(tmp_path) == []
    assert bystander.poll() is None


@pytest.mark.parametrize("text", ["", "words here", "{pid} 1", "999999999 1"])
def test_an_id_that_belongs_to_another_process_by_now_is_left_alone(tmp_path, bystander, text):
    (tmp_path / "pid").write_text(text.format(pid=bystander.pid))
    assert running(tmp_path) is None
    assert end(tmp_path) == 0
    assert bystander.poll() is None
    assert os.getpid() not in children(tmp_path)
