"""The page itself: in this process, through Gradio's client, and in a browser."""

import json
import os
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from tests.app_server import NAMES, predictions
from u2pl_hf.constants import default_palette
from u2pl_hf.evaluation.inference import predict_image
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.pictures import colour_mask, overlay

pytest.importorskip("gradio")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update")  # fmt: skip


@pytest.fixture
def photo(tmp_path):
    """A PNG that must be turned a quarter clockwise to be seen upright, as PIXELS."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS)).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_sliders_do_not_run_the_network(model_dir, photo):
    from u2pl_hf.app.page import Page

    model = load_model(str(model_dir), device="cpu")
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    page = Page(model)
    found, _, over, classes, _, entropy, scale = page.segment(str(photo), 0.5, 0.2)
    assert runs == [1]
    ids = predict_image(model, PIXELS, "cpu")
    palette = default_palette(len(NAMES))
    assert np.array_equal(classes, colour_mask(ids, palette)) and np.array_equal(over, overlay(PIXELS, ids, palette))
    runs.clear()
    assert np.array_equal(page.draw_overlay(found, 0.0), PIXELS)
    is_black = (ids == 0)[..., None]
    assert np.array_equal(page.draw_overlay(found, 1.0), np.where(is_black, PIXELS, classes))
    again, same_scale = page.draw_entropy(found, 0.2)
    assert np.array_equal(again, entropy) and same_scale == scale
    assert not np.array_equal(page.draw_entropy(found, 0.6)[0], entropy)
    assert not runs
    # As after the photograph was removed.
    assert page.segment(None, 0.5, 0.2) == (None,) * 7
    assert page.draw_overlay(None, 0.5) is None and page.draw_entropy(None, 0.2) == (None, None)


def test_clients_get_pictures_and_refusals(server, model_dir, photo, tmp_path):
    import httpx
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    url, log = server
    client = Client(url, verbose=False, download_files=tmp_path / "got", analytics_enabled=False)
    before = predictions(log)
    note, _, classes, legend, entropy, scale = client.predict(handle_file(photo), 0.5, 0.2, api_name="/segment")
    ids = predict_image(load_model(str(model_dir), device="cpu"), PIXELS, "cpu")
    with Image.open(classes) as picture:
        assert np.array_equal(np.asarray(picture), colour_mask(ids, default_palette(len(NAMES))))
    assert "60 x 40 pixels" in note and "gamma = " in scale
    assert all(("car &lt;b&gt;" if c == 2 else NAMES[c]) in legend for c in np.unique(ids))
    # The session remembers the photograph.
    with Image.open(client.predict(0.0, api_name="/overlay")) as bare:
        assert np.abs(np.asarray(bare).astype(int).mean((0, 1)) - PIXELS.mean((0, 1))).max() < 3
    picture, scale = client.predict(1.0, api_name="/reliability")
    assert "100.0 % of the pixels" in scale and os.path.getsize(picture) and os.path.getsize(entropy)
    assert predictions(log, before + 1) == before + 1
    (tmp_path / "fake.jpg").write_text("not a picture")
    with pytest.raises(AppError, match=r"^fake.jpg: not an image that can be read .*; pass a JPEG"):
        client.predict(handle_file(tmp_path / "fake.jpg"), 0.5, 0.2, api_name="/segment")
    assert "Traceback" not in log.read_text()
    with pytest.raises(AppError, match="maximum"):
        client.predict(7, api_name="/reliability")
    # A file of the server that nobody uploaded is not read.
    stolen = {"path": str(photo), "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(f"{url}gradio_api/call/segment", json={"data": [stolen, 0.5, 0.2]}).json()
    answer = httpx.get(f"{url}gradio_api/call/segment/{call['event_id']}", timeout=60).text
    assert "event: error" in answer and "InvalidPathError" in log.read_text()
    assert predictions(log) == before + 1


@pytest.fixture
def browser(tmp_path):
    """Chromium, driven by selenium; skips where they are not installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def requested(browser) -> set[str]:
    """Addresses that the browser asked for."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = (m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return {url for url in sent if url.startswith("http")}


def test_in_a_browser(server, browser, photo, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def all_of(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(condition):
        return WebDriverWait(browser, 60, 0.1).until(lambda _: condition())

    def pictures():
        return [image.get_attribute("src") for image in all_of("img") if "/file=" in image.get_attribute("src")]

    def upload(path):
        wait(lambda: all_of("input[type=file]"))[0].send_keys(str(path))

    def moved(slider):
        """Waits for the one picture that a slider draws anew."""
        shown = pictures()
        slider.send_keys(Keys.ARROW_RIGHT)
        wait(lambda: len(set(pictures()) - set(shown)) == 1)

    url, log = server
    before = predictions(log)
    browser.get(url)
    assert "resnet18 backbone" in wait(lambda: all_of(".u2pl-title"))[0].text
    upload(photo)
    legend = wait(lambda: all_of(".u2pl-legend"))[0].text
    assert "%" in legend and any(name in legend for name in NAMES)
    wait(lambda: len(pictures()) == 6)  # four, and two examples
    opacity, alpha = all_of("input[type=range]")
    moved(opacity)
    moved(alpha)
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    # An example, a photograph in its place: one prediction each.
    all_of(".gallery-item")[1].click()
    wait(lambda: "64 x 64 pixels" in all_of("body")[0].text)
    Image.new("L", (50, 20)).save(tmp_path / "other.png")
    upload(tmp_path / "other.png")
    wait(lambda: "50 x 20 pixels" in all_of("body")[0].text)
    moved(alpha)
    assert predictions(log, before + 3) == before + 3
    (tmp_path / "fake.jpg").write_text("not a picture")
    upload(tmp_path / "fake.jpg")
    wait(lambda: any("fake.jpg: not an image" in toast.text for toast in all_of(".toast-body")))
    wait(lambda: not all_of(".u2pl-legend"))
    assert all(address.startswith(url) for address in requested(browser))
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def test_script_refuses(refused, model_dir, tmp_path):
    assert "nowhere" in refused("app.py", tmp_path / "nowhere", "--port", 0)
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    assert "segformer" in refused("app.py", tmp_path, "--port", 0)
    assert "--longest_side" in refused("app.py", model_dir, "--longest_side", 0)
    assert "none.png: no image there" in refused("app.py", model_dir, "--port", 0, "--examples", tmp_path / "none.png")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot listen" in refused("app.py", model_dir, "--port", port)
    assert "pass another port" in refused("app.py", model_dir, "--port", 70000)


def test_without_gradio_one_line_says_what_to_install(refused, model_dir, monkeypatch):
    monkeypatch.delitem(sys.modules, "u2pl_hf.app.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = refused("app.py", model_dir, "--port", 0)
    assert line == "error: the page needs Gradio: pip install 'u2pl_hf[app]'"
