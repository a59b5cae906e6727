"""JupyterLab as a learner meets it: real chapters and widgets in headless Chromium.

Screenshots are left in runs/browser. Needs Playwright and a Chromium: $SRLAB_CHROMIUM, one on the
path, or Playwright's own (`playwright install chromium`).
"""

import base64
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

CLONE = Path(__file__).resolve().parents[1]
SCREENSHOTS = CLONE / "runs" / "browser"
# Without these Chromium phones home at its start.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
    "apputils-extension/notification": {"fetchNews": "false"},
}
WIDGETS = [
    """
from pathlib import Path

import torch
from srlab.data.degradation import downsample, upsample
from srlab.data.images import read_image
from srlab.models import zoo
from srlab.models.generators import SRResNet
from srlab.data.bank import PatchBank
from srlab.training.config import PretrainConfig
from srlab.training.engine import default_fabric
from srlab.training.pretrain import pretrain
from srlab.viz import widgets

torch.set_num_threads(1)
hr = read_image("photo.png")[:, :240, :320]
lr = downsample(hr)
""",
    'widgets.Lens({"bicubic": upsample(lr), "HR": hr})',
    'widgets.CropPicker(PatchBank.from_files(["photo.png"]), 16)',
    "widgets.DegradationExplorer(hr)",
    'box = widgets.UploadBox(zoo.load("bicubic"))\nbox',
    """
bank = PatchBank.from_files(["photo.png"])
config = PretrainConfig(steps=10**6, batch_size=2, patch_size=8, log_every=5, validate_every=0)
panel = widgets.TrainingPanel("run", config, sample=lr[:, :32, :32], every=0.2)
result = await panel.run(
    pretrain, SRResNet(n_blocks=1, n_features=8), bank, fabric=default_fabric("cpu")
)
""",
    """
saved = Path("run/checkpoint.safetensors").is_file()
print(f"STEPS={result.step} SAVED={saved} AFTER={config.steps > result.step > 0}")
""",
]


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = [os.environ.get("SRLAB_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    with sync_api.sync_playwright() as playwright:
        if not (found or Path(playwright.chromium.executable_path).is_file()):
            pytest.skip(
                "no Chromium: install one, run `playwright install chromium`, or set SRLAB_CHROMIUM"
            )
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """A running JupyterLab over a copy of the chapters: (notebook's name) -> its address."""
    home = tmp_path_factory.mktemp("lab")
    notebooks = home / "notebooks"
    shutil.copytree(CLONE / "notebooks", notebooks)
    Image.fromarray(astronaut()).save(notebooks / "photo.png")
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in WIDGETS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notebooks / "w.ipynb")
    for name, content in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex()
    environment = os.environ | {
        "SRLAB_COURSE": str(CLONE),
        "SRLAB_RUNS": str(home / "runs"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(CLONE), os.environ.get("PYTHONPATH", "")]),
    }
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.root_dir={notebooks}",
            ],
            env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (home / "lab.log").read_text()
                time.sleep(0.25)
        yield lambda name: f"{address}/lab/workspaces/e2e/tree/{name}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


NOTEBOOK = "jupyterapp.shell.currentWidget"


@pytest.fixture
def opened(chromium, lab):
    """(notebook's name) -> the page with all its cells started; at the end none has failed."""
    pages = []

    def open_and_run(name):
        page = chromium.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(180_000)  # a loaded machine is slow, not wrong
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append((name, page, errors))
        page.goto(lab(name))
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.context?.isReady"
            " && jupyterapp.shell.currentWidget.sessionContext.isReady"
            " && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'"
            " && jupyterapp.commands.isEnabled('notebook:run-all-cells')"
        )
        # Not awaited: it ends with the last cell.
        page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        return page

    yield open_and_run
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for name, page, errors in pages:
        page.screenshot(path=SCREENSHOTS / f"{Path(name).stem}-end.png")
        page.evaluate(f"() => {NOTEBOOK}.sessionContext.shutdown()")
        page.close()
        assert errors == []


def wait_for_all_cells(page):
    page.wait_for_function(
        f"""() => {NOTEBOOK}.sessionContext.session.kernel.status == 'idle'
        && {NOTEBOOK}.content.widgets.filter(c => c.model.type == 'code')
               .every(c => c.model.executionCount)"""
    )
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert failed.count() == 0, failed.first.inner_text()
    assert page.locator(".jupyter-widgets-disconnected").count() == 0


def shown(locator):
    """The pixels of an element as they stand on the screen."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def data(uri):
    kind, text = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_chapter_00_runs_and_its_slider_moves_pixels(opened):
    page = opened("00_start_here.ipynb")
    wait_for_all_cells(page)
    line = page.locator(".widget-slider", has_text="line at").first
    picture = page.locator(".widget-html img").first
    line.scroll_into_view_if_needed()
    picture.screenshot(path=SCREENSHOTS / "00-before.png")
    before, size = shown(picture), picture.bounding_box()
    handle = line.locator(".noUi-handle")
    handle.focus()
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "e => e.textContent.trim() == '75'", arg=line.locator(".widget-readout").element_handle()
    )
    page.wait_for_timeout(500)
    after = shown(picture)
    picture.screenshot(path=SCREENSHOTS / "00-after.png")
    assert picture.bounding_box() == size  # no jump
    columns = np.flatnonzero((before != after).any((0, 2))) / before.shape[1]
    assert 0.45 < columns.min() < columns.max() < 0.8  # between the line's old and new place


def test_widgets_answer_mouse_keys_files_and_the_stop_button(opened, tmp_path):
    page = opened("w.ipynb")

    # While the training cell is busy: the panel shows where it is, and Stop ends it after a step.
    stop = page.get_by_role("button", name="Stop")
    stop.wait_for()
    page.get_by_text("patches/s").wait_for()
    stop.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / "panel-running.png")
    stop.click()
    wait_for_all_cells(page)
    text = page.locator(".jp-OutputArea", has_text="STEPS=").last.inner_text()
    assert "SAVED=True AFTER=True" in text
    assert page.locator(".widget-html", has_text="stopped after step").count() == 1
    assert stop.is_disabled()

    # The lens rests in the middle and follows the mouse.
    lens = page.locator("[id^=lens-]")
    lens.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    resting = shown(lens)
    lens.hover(position={"x": 60, "y": 60})
    page.wait_for_timeout(200)
    moved = shown(lens)
    page.screenshot(path=SCREENSHOTS / "lens.png")
    assert np.abs(resting - moved)[30:90, 30:90].mean() > 3  # it came
    assert np.abs(resting - moved)[115:125, 155:165].mean() > 3  # it left

    # A drop-down by keyboard alone. (The arrow of a closed one would move JupyterLab's cursor.)
    spectrum = page.locator('img[alt*="shrunk to"]')
    spectrum.scroll_into_view_if_needed()
    alt = spectrum.get_attribute("alt")
    page.get_by_label("scale", exact=True).focus()
    for key in ("Space", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.locator('img[alt*="shrunk to 1/8"]').wait_for()
    assert "1/4" in alt

    # A photo in, one four times as large out; what the link downloads is the whole picture.
    photo = tmp_path / "my photo.png"
    Image.fromarray(astronaut()[100:148, 200:264]).save(photo)
    page.screenshot(path=SCREENSHOTS / "upload-before.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a photo").click()
    chooser.value.set_files(photo)
    link = page.locator("a[download]")
    link.wait_for()
    link.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / "upload.png")
    with page.expect_download() as waiting:
        link.click()
    assert waiting.value.suggested_filename == "my photo-x4.png"
    assert Image.open(waiting.value.path()).size == (4 * 64, 4 * 48)
    assert data(link.get_attribute("href")).size == (4 * 64, 4 * 48)
